"""The operators: what is checked before a kernel runs, and how it is launched."""

from functools import partial
from typing import NamedTuple, Optional

import torch
import triton

from ._kernels import (
    activate_kernel,
    apply_rotary_kernel,
    qk_norm_rope_cache_kernel,
    rms_norm_kernel,
    rotary_kernel,
)
from ._launch import (
    check,
    check_dims,
    check_float,
    check_inner_stride,
    check_like,
    on_device,
    register,
    row_stride,
)


def _check_rows(tensor: torch.Tensor, name: str) -> int:
    check(tensor.dim() >= 1, f"{name} must have at least 1 dimension")
    check_inner_stride(tensor, name)
    return row_stride(tensor, name, tensor.dim() - 1)


def rms_norm(out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    _check_norm(input, weight)
    check_like(out, "out", input, input.dtype)
    check(out.shape == input.shape, "out must have the shape of input")
    _norm(out, "out", input, None, weight, epsilon)


def fused_add_rms_norm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> None:
    _check_norm(input, weight)
    check_like(residual, "residual", input, input.dtype)
    check(residual.shape == input.shape, "residual must have the shape of input")
    _norm(input, "input", input, residual, weight, epsilon)


def _check_norm(input: torch.Tensor, weight: torch.Tensor) -> None:
    check_float(input, "input")
    _check_rows(input, "input")
    check_like(weight, "weight", input, input.dtype)
    size = input.shape[-1]
    check(weight.shape == (size,), f"weight must have the {size} elements of a row of input")
    check_inner_stride(weight, "weight")


def _norm(
    out: torch.Tensor,
    name: str,
    input: torch.Tensor,
    residual: Optional[torch.Tensor],
    weight: torch.Tensor,
    epsilon: float,
) -> None:
    size = input.shape[-1]
    strides = [_check_rows(out, name), _check_rows(input, "input")]
    strides.append(strides[1] if residual is None else _check_rows(residual, "residual"))
    if input.numel() == 0:
        return
    with on_device(input):
        rms_norm_kernel[(input.numel() // size,)](
            out,
            input,
            input if residual is None else residual,
            weight,
            epsilon,
            size,
            *strides,
            ADD=residual is not None,
        )


# As the kernel numbers them; the other two names are gelu_tanh's too.
_FUNCTIONS = {
    "silu": 0,
    "gelu": 1,
    "gelu_tanh": 2,
    "gelu_quick": 3,
    "fatrelu": 4,
    "gelu_fast": 2,
    "gelu_new": 2,
}


def _activate(out: torch.Tensor, input: torch.Tensor, function: str) -> None:
    check_float(input, "input")
    check(input.dim() >= 1, "input must have at least 1 dimension")
    size = input.shape[-1]
    check_like(out, "out", input, input.dtype)
    check(out.shape == input.shape, f"out must have the shape of input, rows of {size}")
    _launch_activation(out, input, function, 0, None, 0.0)


def _activate_half(
    out: torch.Tensor, input: torch.Tensor, threshold: float = 0.0, *, function: str, last: bool = False
) -> None:
    check_float(input, "input")
    check(input.dim() >= 1, "input must have at least 1 dimension")
    columns = input.shape[-1]
    check(columns % 2 == 0, f"input must have an even last dimension, got {columns}")
    size = columns // 2
    check_like(out, "out", input, input.dtype)
    check(
        out.shape == (*input.shape[:-1], size),
        f"out must have the shape of input with half of its last dimension, {size}",
    )
    _launch_activation(out, input, function, size if last else 0, 0 if last else size, threshold)


def _launch_activation(
    out: torch.Tensor, input: torch.Tensor, function: str, gate: int, up: Optional[int], threshold: float
) -> None:
    input_row, out_row = _check_rows(input, "input"), _check_rows(out, "out")
    size = out.shape[-1]
    if out.numel() == 0:
        return
    with on_device(input):
        activate_kernel[lambda meta: (out.numel() // size, triton.cdiv(size, meta["BLOCK"]))](
            out,
            input,
            size,
            out_row,
            input_row,
            gate,
            up or 0,
            threshold,
            FUNCTION=_FUNCTIONS[function],
            GATED=up is not None,
        )


class _Heads(NamedTuple):
    count: int
    token_stride: int
    head_stride: int


def _heads_of(tensor: torch.Tensor, name: str, positions: torch.Tensor, head_size: int) -> _Heads:
    """Tokens in the leading dimensions of ``positions``, then [heads * head_size] or [heads, head_size]."""
    dims = positions.dim()
    check(
        tensor.dim() in (dims + 1, dims + 2),
        f"{name} must have {dims + 1} or {dims + 2} dimensions (positions has {dims}), got {tensor.dim()}",
    )
    for i in range(dims):
        check(
            tensor.shape[i] == positions.shape[i],
            f"{name} must have the size of positions, {positions.shape[i]}, in dimension {i}, got {tensor.shape[i]}",
        )
    check_inner_stride(tensor, name)
    stride, last = row_stride(tensor, name, dims), tensor.shape[-1]
    if tensor.dim() == dims + 2:
        check(last == head_size, f"{name} must have heads of {head_size}, got {last}")
        return _Heads(tensor.shape[dims], stride, tensor.stride(dims))
    check(
        last % head_size == 0,
        f"{name} must have a last dimension divisible by head_size {head_size}, got {last}",
    )
    return _Heads(last // head_size, stride, head_size)


def _check_positions(positions: torch.Tensor, on: torch.Tensor, head_size: int) -> None:
    check_like(positions, "positions", on, torch.int64)
    check(positions.is_contiguous(), "positions must be contiguous")
    check(head_size > 0, f"head_size must be positive, got {head_size}")


def _check_angles(on: torch.Tensor, name: str, head_size: int, cos_sin_cache: torch.Tensor) -> int:
    """Returns the elements of a head that are rotated; ``on`` has the dtype and device of the heads."""
    check_float(cos_sin_cache, "cos_sin_cache")
    check(cos_sin_cache.device == on.device, f"cos_sin_cache must be on the device of {name}")
    check_dims(cos_sin_cache, "cos_sin_cache", 2)
    check_inner_stride(cos_sin_cache, "cos_sin_cache")
    rotated = cos_sin_cache.shape[1]
    check(
        rotated % 2 == 0 and rotated <= head_size,
        f"cos_sin_cache must have an even width of at most head_size {head_size}, got {rotated}",
    )
    return rotated


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: Optional[torch.Tensor],
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> None:
    check_float(query, "query")
    _check_positions(positions, query, head_size)
    of_query, of_key = _heads_of(query, "query", positions, head_size), _Heads(0, 0, 0)
    if key is not None:
        check_like(key, "key", query, query.dtype)
        of_key = _heads_of(key, "key", positions, head_size)
    rotated = _check_angles(query, "query", head_size, cos_sin_cache)
    heads = max(of_query.count, of_key.count)
    if positions.numel() == 0 or rotated == 0 or heads == 0:
        return
    block = min(8, triton.next_power_of_2(heads))
    with on_device(query):
        rotary_kernel[(positions.numel(), sum(triton.cdiv(of.count, block) for of in (of_query, of_key)))](
            positions,
            query,
            query if key is None else key,
            cos_sin_cache,
            cos_sin_cache.shape[0],
            cos_sin_cache.stride(0),
            *of_query,
            *of_key,
            HALF=rotated // 2,
            HALF_PADDED=triton.next_power_of_2(rotated // 2),
            NEOX=is_neox,
            BLOCK_H=block,
        )


def apply_rotary(
    x1: torch.Tensor,
    x2: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out1: torch.Tensor,
    out2: torch.Tensor,
    conj: bool,
) -> None:
    check_float(x1, "x1")
    check(1 <= x1.dim() <= 4, f"x1 must have 1 to 4 dimensions, got {x1.dim()}")
    for tensor, name in ((x2, "x2"), (out1, "out1"), (out2, "out2")):
        check(tensor.shape == x1.shape, f"{name} must have the shape of x1")
    given = {"x1": x1, "x2": x2, "cos": cos, "sin": sin, "out1": out1, "out2": out2}
    strides: list[int] = []
    for name, tensor in given.items():
        check_like(tensor, name, x1, x1.dtype)
        check(
            tensor.dim() <= x1.dim(),
            f"{name} must have at most the {x1.dim()} dimensions of x1, got {tensor.dim()}",
        )
        sizes = x1.shape[x1.dim() - tensor.dim() :]
        for i, (size, wanted) in enumerate(zip(tensor.shape, sizes)):
            check(
                size in (1, wanted),
                f"{name} must have size 1 or that of x1, {wanted}, in dimension {i}, got {size}",
            )
        own = [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride())]
        strides += [0] * (4 - len(own)) + own
    total = x1.numel()
    if total == 0:
        return
    shape = [1] * (4 - x1.dim()) + list(x1.shape)
    with on_device(x1):
        apply_rotary_kernel[(triton.cdiv(total, 1024),)](
            *given.values(), total, *shape[1:], *strides, CONJ=conj, BLOCK=1024
        )


def rotate_halves(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out_q: torch.Tensor,
    out_k: torch.Tensor,
    unsqueeze_dim: int,
) -> None:
    check(unsqueeze_dim in (1, 2), f"unsqueeze_dim must be 1 or 2, got {unsqueeze_dim}")
    check(sin.shape == cos.shape, "sin must have the shape of cos")
    both = {"q": (q, out_q), "k": (k, out_k)}
    for name, (x, out) in both.items():
        check_dims(x, name, 4)
        check(out.shape == x.shape, f"out_{name} must have the shape of {name}")
        tokens = x.shape[3 - unsqueeze_dim]
        check(
            cos.dim() == 3 and cos.shape[0] in (1, x.shape[0]) and cos.shape[1] == tokens,
            f"cos must have 3 dimensions: 1 or the batch of {name}, {x.shape[0]}, its {tokens} tokens, and the angles",
        )
        rotated = cos.shape[2]
        check(
            rotated % 2 == 0 and rotated <= x.shape[3],
            f"cos must have an even width of at most the {x.shape[3]} elements of a head of {name}, got {rotated}",
        )
    check_like(k, "k", q, q.dtype)
    half = cos.shape[2] // 2
    angles = [of[..., :half].unsqueeze(unsqueeze_dim) for of in (cos, sin)]
    for x, out in both.values():
        halves = [of[..., first : first + half] for of in (x, out) for first in (0, half)]
        apply_rotary(*halves[:2], *angles, *halves[2:], conj=False)


def qk_norm_rope_cache(
    qkv: torch.Tensor,
    q_weight: Optional[torch.Tensor],
    k_weight: Optional[torch.Tensor],
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
    is_neox: bool,
    epsilon: float,
) -> None:
    check_float(qkv, "qkv")
    for cache, name in ((key_cache, "key_cache"), (value_cache, "value_cache")):
        check_like(cache, name, qkv, qkv.dtype)
        check_dims(cache, name, 4)
        check_inner_stride(cache, name)
    check(value_cache.shape == key_cache.shape, "value_cache must have the shape of key_cache")
    num_blocks, block_size, kv_heads, head_size = key_cache.shape
    _check_positions(positions, qkv, head_size)
    rotated = _check_angles(qkv, "qkv", head_size, cos_sin_cache)
    check_dims(positions, "positions", 1)
    check(num_heads >= 0, f"num_heads must not be negative, got {num_heads}")
    tokens = positions.shape[0]
    check(
        qkv.dim() == 2 and qkv.shape[0] == tokens,
        f"qkv must have 2 dimensions and the {tokens} tokens of positions",
    )
    width = (num_heads + 2 * kv_heads) * head_size
    check(
        qkv.shape[1] == width,
        f"qkv must have size {width} in dimension 1: {num_heads} heads and twice {kv_heads} of {head_size}; "
        f"got {qkv.shape[1]}",
    )
    check_inner_stride(qkv, "qkv")
    for weight, name in ((q_weight, "q_weight"), (k_weight, "k_weight")):
        if weight is not None:
            check_like(weight, name, qkv, qkv.dtype)
            check(weight.shape == (head_size,), f"{name} must have the {head_size} elements of a head")
            check_inner_stride(weight, name)
    check_like(slot_mapping, "slot_mapping", qkv, torch.int64)
    check(
        slot_mapping.dim() == 1 and slot_mapping.shape[0] <= tokens,
        f"slot_mapping must have 1 dimension and not be longer than the {tokens} tokens of qkv",
    )
    check_inner_stride(slot_mapping, "slot_mapping")
    heads = max(num_heads, kv_heads)
    if tokens == 0 or heads == 0:
        return
    block = min(8, triton.next_power_of_2(heads))
    with on_device(qkv):
        qk_norm_rope_cache_kernel[(tokens, triton.cdiv(num_heads, block) + triton.cdiv(kv_heads, block))](
            qkv,
            qkv if q_weight is None else q_weight,
            qkv if k_weight is None else k_weight,
            positions,
            cos_sin_cache,
            key_cache,
            value_cache,
            slot_mapping,
            epsilon,
            cos_sin_cache.shape[0],
            cos_sin_cache.stride(0),
            qkv.stride(0),
            num_heads,
            kv_heads,
            num_blocks * block_size,
            slot_mapping.shape[0],
            *key_cache.stride()[:3],
            *value_cache.stride()[:3],
            BLOCK_SIZE=max(1, block_size),
            HEAD=head_size,
            HEAD_PADDED=triton.next_power_of_2(head_size),
            HALF=rotated // 2,
            HALF_PADDED=triton.next_power_of_2(max(1, rotated // 2)),
            REST_PADDED=triton.next_power_of_2(max(1, head_size - rotated)),
            NEOX=is_neox,
            NORM_Q=q_weight is not None,
            NORM_K=k_weight is not None,
            BLOCK_H=block,
        )


register("rms_norm", "(Tensor(a!) out, Tensor input, Tensor weight, float epsilon) -> ()", rms_norm)
register(
    "fused_add_rms_norm",
    "(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float epsilon) -> ()",
    fused_add_rms_norm,
)
register("silu", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate, function="silu"))
register("gelu", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate, function="gelu"))
register("gelu_tanh", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate, function="gelu_tanh"))
register("gelu_fast", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate, function="gelu_fast"))
register("gelu_new", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate, function="gelu_new"))
register("gelu_quick", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate, function="gelu_quick"))
register("silu_and_mul", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate_half, function="silu"))
register("gelu_and_mul", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate_half, function="gelu"))
register(
    "gelu_tanh_and_mul", "(Tensor(a!) out, Tensor input) -> ()", partial(_activate_half, function="gelu_tanh")
)
register(
    "mul_and_silu",
    "(Tensor(a!) out, Tensor input) -> ()",
    partial(_activate_half, function="silu", last=True),
)
register(
    "fatrelu_and_mul",
    "(Tensor(a!) out, Tensor input, float threshold) -> ()",
    partial(_activate_half, function="fatrelu"),
)
register(
    "rotary_embedding",
    "(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, Tensor cos_sin_cache, bool is_neox) -> ()",
    rotary_embedding,
)
register(
    "apply_rotary",
    "(Tensor x1, Tensor x2, Tensor cos, Tensor sin, Tensor(a!) out1, Tensor(b!) out2, bool conj) -> ()",
    apply_rotary,
)
register(
    "rotate_halves",
    "(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor(a!) out_q, Tensor(b!) out_k, int unsqueeze_dim) -> ()",
    rotate_halves,
)
register(
    "qk_norm_rope_cache",
    "(Tensor(a!) qkv, Tensor? q_weight, Tensor? k_weight, Tensor positions, Tensor cos_sin_cache, "
    "Tensor(b!) key_cache, Tensor(c!) value_cache, Tensor slot_mapping, int num_heads, bool is_neox, float epsilon) "
    "-> ()",
    qk_norm_rope_cache,
)
