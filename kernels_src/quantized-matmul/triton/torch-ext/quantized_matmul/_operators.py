"""The operators: what is checked before a kernel runs, and how it is launched."""

from typing import Callable, Optional

import torch
import triton

from ._kernels import fp8_matmul_kernel, gguf_matmul_kernel, int4_matmul_kernel, int8_matmul_kernel
from ._launch import (
    check,
    check_dims,
    check_float,
    check_inner_stride,
    check_like,
    check_size,
    on_device,
    register,
)
from .fp8 import BLOCK
from .gguf import KINDS


def int8_matmul(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: Optional[torch.Tensor],
    int8_activations: bool,
) -> None:
    """``int8_activations`` allows what is not done here."""
    check_dims(weight, "weight", 2)
    n = weight.shape[0]
    _check_dense(out, x, n, bias)
    m, k = x.shape
    _check(weight, "weight", x, torch.int8, (n, k))
    _check(scales, "scales", x, torch.float32, (n,))
    if m == 0 or n == 0:
        return
    with on_device(x):
        int8_matmul_kernel[_grid(m, n)](
            out, x, weight, scales, bias, m, n, k, out.stride(0), x.stride(0), BLOCK_M=_block_m(m)
        )


def int4_matmul(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    group_size: int,
    int8_activations: bool,
) -> None:
    """``int8_activations`` allows what gains nothing here."""
    check_dims(weight, "weight", 2)
    n = weight.shape[0]
    _check_dense(out, x, n, bias)
    m, k = x.shape
    regular = group_size > 0 and group_size % 32 == 0 and 512 % group_size == 0 and k % group_size == 0
    check(
        regular or group_size == k,
        f"group_size must be 32 to 512 in powers of two and divide the {k} columns of x, or be their number; "
        f"got {group_size}",
    )
    groups = k // group_size
    _check(weight, "weight", x, torch.uint8, (n, (k + 1) // 2))
    check_float(scales, "scales")
    _check(scales, "scales", x, scales.dtype, (n, groups))
    if zeros is not None:
        _check(zeros, "zeros", x, torch.uint8, (n, groups))
    if m == 0 or n == 0:
        return
    with on_device(x):
        int4_matmul_kernel[_grid(m, n)](
            out,
            x,
            weight,
            scales,
            zeros,
            bias,
            m,
            n,
            k,
            weight.shape[1],
            out.stride(0),
            x.stride(0),
            GROUP=group_size,
            BLOCK_J=min(64, group_size // 2) if regular else 32,
            BLOCK_M=_block_m(m),
        )


def fp8_matmul(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: Optional[torch.Tensor],
    fp8_activations: bool,
) -> None:
    """``fp8_activations`` allows what is not done here."""
    check_dims(weight, "weight", 2)
    n = weight.shape[0]
    _check_dense(out, x, n, bias)
    m, k = x.shape
    _check(weight, "weight", x, torch.float8_e4m3fn, (n, k))
    check(
        scales.dim() in (1, 2),
        f"scales must have 1 dimension, a scale for each channel, or 2, one for each block of {BLOCK} x {BLOCK}; "
        f"got {scales.dim()}",
    )
    blocks = scales.dim() == 2
    shape = (triton.cdiv(n, BLOCK), triton.cdiv(k, BLOCK)) if blocks else (n,)
    _check(scales, "scales", x, torch.float32, shape)
    if m == 0 or n == 0:
        return
    with on_device(x):
        fp8_matmul_kernel[_grid(m, n)](
            out,
            x,
            weight.view(torch.uint8),  # GPUs before compute capability 8.9 have no conversion of e4m3
            scales,
            bias,
            m,
            n,
            k,
            shape[-1],
            out.stride(0),
            x.stride(0),
            BLOCKS=BLOCK if blocks else 0,
            BLOCK_M=_block_m(m),
        )


def gguf_matmul(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], block_type: int
) -> None:
    check_dims(weight, "weight", 2)
    n = weight.shape[0]
    _check_dense(out, x, n, bias)
    m, k = x.shape
    kinds = {kind.number: kind for kind in KINDS.values()}
    names = ", ".join(f"{kind.number} ({name})" for name, kind in KINDS.items())
    check(block_type in kinds, f"block_type must be one of ggml's {names}, got {block_type}")
    kind = kinds[block_type]
    check(
        k % kind.values == 0,
        f"x must have a multiple of the {kind.values} values of a block as columns, got {k}",
    )
    _check(weight, "weight", x, torch.uint8, (n, k // kind.values * kind.bytes))
    if m == 0 or n == 0:
        return
    with on_device(x):
        gguf_matmul_kernel[_grid(m, n)](
            out,
            x,
            weight,
            bias,
            m,
            n,
            k,
            weight.shape[1],
            out.stride(0),
            x.stride(0),
            KIND=kind.number,
            VALUES=kind.values,
            BYTES=kind.bytes,
            GROUP=kind.group_size,
            BLOCK_M=_block_m(m),
        )


def _block_m(m: int) -> int:
    """Tensor cores take 16 rows or more."""
    return min(64, max(16, triton.next_power_of_2(m)))


def _grid(m: int, n: int) -> Callable[[dict[str, int]], tuple[int, int]]:
    return lambda meta: (triton.cdiv(n, meta["BLOCK_N"]), triton.cdiv(m, meta["BLOCK_M"]))


def _check_dense(out: torch.Tensor, x: torch.Tensor, n: int, bias: Optional[torch.Tensor]) -> None:
    """Everything but the weights."""
    check_float(x, "x")
    check_dims(x, "x", 2)
    check_inner_stride(x, "x")
    check(x.shape[1] > 0, "x must have at least 1 column")
    check_like(out, "out", x, x.dtype)
    check_dims(out, "out", 2)
    for i, size in enumerate((x.shape[0], n)):
        check_size(out, "out", i, size)
    check_inner_stride(out, "out")
    if bias is not None:
        _check(bias, "bias", x, x.dtype, (n,))


def _check(
    tensor: torch.Tensor, name: str, x: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    check_like(tensor, name, x, dtype)
    check_dims(tensor, name, len(shape))
    for i, size in enumerate(shape):
        check_size(tensor, name, i, size)
    check(tensor.is_contiguous(), f"{name} must be contiguous")


register(
    "int8_matmul",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor scales, Tensor? bias, bool int8_activations) -> ()",
    int8_matmul,
)
register(
    "fp8_matmul",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor scales, Tensor? bias, bool fp8_activations) -> ()",
    fp8_matmul,
)
register(
    "int4_matmul",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor scales, Tensor? zeros, Tensor? bias, int group_size, "
    "bool int8_activations) -> ()",
    int4_matmul,
)
register(
    "gguf_matmul",
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, int block_type) -> ()",
    gguf_matmul,
)
