"""Before a kernel serves: does it compute, on this device, what plain torch computes in float64?

Each slot that is not plain torch gets fresh random inputs in the model's own shapes. What it gives may differ from
the reference by rounding alone. So a binary for another GPU, a broken build or a kernel that reads what it should not
is found before the first token, and named.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from hub_loader.errors import ModelError, SelfTestError

from . import torch_ops
from .config import ModelConfig
from .kernel_table import TORCH, Binding
from .kernels import FORMATS, OPTIONAL, SLOTS, Kernels
from .quant.proof import matmul_pairs, samples
from .shapes import Pair, Shapes
from .weights import Checkpoint

# Largest difference, relative to the largest value of the reference: what rounding of inputs and results may do.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
_LENGTHS = (37, 20, 1)  # tokens in the cache of each sequence of a step
_NEW = (1, 6, 1)  # and how many of them are new: a decode, a prefill in parts, a first token


def shapes_of(
    config: ModelConfig,
    dtype: torch.dtype,
    block_size: int,
    quantized: frozenset[str] = frozenset(),
    weights: Checkpoint | None = None,
    device: str = "cpu",
) -> Shapes:
    """The shapes of a model that computes in `dtype` on `device`; `weights`: where its own packed weights are."""
    windows = dict.fromkeys(config.windows)
    softcap = {"softcap": config.attention_softcap} if config.attention_softcap else {}
    return Shapes(
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        epsilon=config.norm_epsilon,
        block_size=block_size,
        dtype=dtype,
        options=tuple(softcap if window is None else {"window": window, **softcap} for window in windows),
        quantized=quantized,
        device=device,
        samples=partial(samples, config, weights) if weights is not None else list,
    )


def proven(kernels: Kernels, shapes: Shapes, *, fall_back: bool = False, seed: int | None = None) -> Kernels:
    """`kernels` with what the tests found in their table; `seed` None draws one.

    fall_back: a slot whose kernel fails becomes plain torch, and the table says why.

    Raises:
        SelfTestError: a kernel fails, and it may not fall back. Names slot, source and difference.
    """
    seed = random.getrandbits(32) if seed is None else seed
    bindings = []
    for binding in kernels.bindings:
        unserved = shapes.quantized - kernels.formats if binding.slot == "matmul" else frozenset[str]()
        if binding.source == TORCH or (binding.slot == "matmul" and unserved == shapes.quantized):
            note = f"not needed: {', '.join(sorted(unserved))} is plain torch's" if unserved else ""
            bindings.append(binding if binding.source == TORCH else replace(binding, test=note))
            continue
        try:
            found = _run(binding, kernels, shapes, seed)
        except SelfTestError as error:
            if not fall_back:
                raise
            plain: dict[str, Any] = {
                name: getattr(torch_ops, name)
                for name in SLOTS[binding.slot] + OPTIONAL.get(binding.slot, ())
            }
            if binding.slot == "matmul":
                plain["formats"] = FORMATS  # what the failed kernel said of itself is not plain torch's
            kernels = replace(kernels, **plain)
            found = Binding(binding.slot, reason=str(error), test="failed")
        bindings.append(found)
    return replace(kernels, bindings=tuple(bindings))


def _run(binding: Binding, kernels: Kernels, shapes: Shapes, seed: int) -> Binding:
    generator = torch.Generator().manual_seed(seed)
    random_of = partial(_random, generator, shapes)
    what = f"slot {binding.slot}: {binding.source} ({binding.variant})"
    cure = "pass another kernel, or allow plain torch in its place with fall_back"
    worst = 0.0
    try:
        for name, got, expected, more in _TESTS[binding.slot](kernels, shapes, random_of):
            error, allowed = _difference(got, expected), TOLERANCE[shapes.dtype] + more
            if not error <= allowed:  # not a number is not allowed either
                raise SelfTestError(
                    f"{what} fails its self-test on {_device(shapes)}: {name} is off by {error:.2g} of the largest "
                    f"value, {allowed:.1g} is allowed (seed {seed}): {cure}"
                )
            worst = worst if more else max(worst, error)
    except (SelfTestError, ModelError):
        raise
    except Exception as error:  # whatever a stranger's kernel raises is a reason not to use it
        raise SelfTestError(
            f"{what} fails its self-test on {_device(shapes)}: {type(error).__name__}: {error} (seed {seed}): {cure}"
        ) from error
    return replace(binding, test=f"passed, off by {worst:.1e}")


def _device(shapes: Shapes) -> str:
    return torch.cuda.get_device_name(shapes.device) if shapes.device.startswith("cuda") else "this CPU"


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value; infinite for another shape, NaN if one is not a number."""
    if got.shape != expected.shape:
        return float("inf")
    wide = expected.to(torch.float64)
    largest = float(wide.abs().max().clamp_min(1e-30))
    return float((got.to(torch.float64) - wide).abs().max()) / largest


def _random(generator: torch.Generator, shapes: Shapes, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(shapes.dtype).to(shapes.device)


# -- one test for each slot


@dataclass(frozen=True)
class _Step:
    """A step of three sequences over a paged cache: new tokens, and where the cache has theirs."""

    tables: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    blocks: int


def _step(shapes: Shapes) -> _Step:
    size, device = shapes.block_size, shapes.device
    counts = [-(-length // size) for length in _LENGTHS]
    total = sum(counts)
    order = [*range(0, total, 2), *range(1, total, 2)]
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    slots = []
    for row, (count, length, new) in enumerate(zip(counts, _LENGTHS, _NEW, strict=True)):
        own = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(own, dtype=torch.int32)
        slots += [own[p // size] * size + p % size for p in range(length - new, length)]
    starts = torch.tensor([0, *_NEW], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    lengths = torch.tensor(_LENGTHS, dtype=torch.int32)
    return _Step(
        tables.to(device), torch.tensor(slots).to(device), lengths.to(device), starts.to(device), total
    )


def _tree_mask(shapes: Shapes) -> torch.Tensor:
    """Int32 [new tokens, 2]: the second sequence's are a tree, the other two's are tokens like any others."""
    parents = (-1, 0, 0, 1, -1, 4)
    first = 32 - len(parents)  # the bit of node 0, in the second word
    seen: list[int] = []
    for node, parent in enumerate(parents):
        seen.append((seen[parent] if parent >= 0 else (1 << first) - 1) | 1 << first + node)
    ones = 0xFFFFFFFF
    mask = torch.tensor([[ones, ones], *([ones, high] for high in seen), [ones, ones]])
    return mask.to(torch.uint32).view(torch.int32).to(shapes.device)


def _attention(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    step = _step(shapes)
    query = random_of(sum(_NEW), shapes.heads, shapes.head_dim)
    cache = (step.blocks, shapes.block_size, shapes.kv_heads, shapes.head_dim)
    keys, values = random_of(*cache), random_of(*cache)
    trees: list[dict[str, Any]] = [{}, {"tree_mask": _tree_mask(shapes)}] if kernels.takes_trees else [{}]
    for options, tree in product(shapes.options, trees):
        arguments: dict[str, Any] = {
            "block_tables": step.tables,
            "seq_lens": step.lengths,
            "query_start_loc": step.starts,
            "scale": shapes.head_dim**-0.5,
            **options,
            **tree,
        }
        expected = torch_ops.attend(query.double(), keys.double(), values.double(), **arguments)
        yield "attend", kernels.attend(query, keys, values, **arguments), expected, 0


def _kv_write(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    step = _step(shapes)
    slots = step.slots.clone()
    slots[0] = -1
    new = (len(slots), shapes.kv_heads, shapes.head_dim)
    cache = (step.blocks, shapes.block_size, shapes.kv_heads, shapes.head_dim)
    key, value, keys, values = random_of(*new), random_of(*new), random_of(*cache), random_of(*cache)
    expected = keys.clone(), values.clone()
    torch_ops.reshape_and_cache_flash(key, value, *expected, slots)
    kernels.reshape_and_cache_flash(key, value, keys, values, slots)
    yield "reshape_and_cache_flash", keys, expected[0], 0
    yield "reshape_and_cache_flash", values, expected[1], 0


def _norm(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    rows, epsilon = 5, shapes.epsilon
    for width in {shapes.hidden, shapes.head_dim}:
        x, weight, residual = random_of(rows, width), random_of(width), random_of(rows, width)
        wide, wide_residual = x.double(), residual.double()
        out, expected = torch.empty_like(x), torch.empty_like(wide)
        kernels.rms_norm(out, x, weight, epsilon)
        torch_ops.rms_norm(expected, wide, weight.double(), epsilon)
        yield "rms_norm", out, expected, 0
        kernels.fused_add_rms_norm(x, residual, weight, epsilon)
        torch_ops.fused_add_rms_norm(wide, wide_residual, weight.double(), epsilon)
        yield "fused_add_rms_norm", x, wide, 0
        yield "fused_add_rms_norm", residual, wide_residual, 0


def _cos_sin(shapes: Shapes, context: int) -> torch.Tensor:
    angles = torch.arange(context)[:, None] * 100.0 ** -torch.linspace(0, 1, shapes.head_dim // 2)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(shapes.dtype).to(shapes.device)


def _rotary(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    context = 64
    positions, table = (
        torch.tensor([0, 1, 7, context - 1, 30], device=shapes.device),
        _cos_sin(shapes, context),
    )
    query = random_of(len(positions), shapes.heads * shapes.head_dim)
    key = random_of(len(positions), shapes.kv_heads * shapes.head_dim)
    expected = query.double(), key.double()
    torch_ops.rotary_embedding(positions, *expected, shapes.head_dim, table.double(), True)
    kernels.rotary_embedding(positions, query, key, shapes.head_dim, table, True)
    yield "rotary_embedding", query, expected[0], 0
    yield "rotary_embedding", key, expected[1], 0


def _qkv(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    step, table = _step(shapes), _cos_sin(shapes, 64)
    slots, positions = step.slots.clone(), torch.arange(sum(_NEW), device=shapes.device) * 7 % 64
    slots[0] = -1
    cache = (step.blocks, shapes.block_size, shapes.kv_heads, shapes.head_dim)
    for weights in ((None, None), (random_of(shapes.head_dim), random_of(shapes.head_dim))):
        qkv = random_of(len(slots), (shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim)
        keys, values = random_of(*cache), random_of(*cache)
        wide_qkv, wide_keys, wide_values = qkv.double(), keys.double(), values.double()
        wide = [None if weight is None else weight.double() for weight in weights]
        step_of = (slots, shapes.heads, True, shapes.epsilon)
        torch_ops.qk_norm_rope_cache(
            wide_qkv, wide[0], wide[1], positions, table.double(), wide_keys, wide_values, *step_of
        )
        kernels.qk_norm_rope_cache(qkv, *weights, positions, table, keys, values, *step_of)
        query = shapes.heads * shapes.head_dim
        yield "qk_norm_rope_cache", qkv[:, :query], wide_qkv[:, :query], 0
        yield "qk_norm_rope_cache", keys, wide_keys, 0
        yield "qk_norm_rope_cache", values, wide_values, 0


def _activation(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    x = random_of(5, 2 * shapes.inner)
    for name in SLOTS["activation"] + OPTIONAL["activation"]:
        out, expected = x.new_empty(5, shapes.inner), x.new_empty(5, shapes.inner).double()
        getattr(kernels, name)(out, x)
        getattr(torch_ops, name)(expected, x.double())
        yield name, out, expected, 0


def _linear(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    """Few rows and many, for kernels that take the first and leave the second to the library."""
    weight, bias = random_of(shapes.inner, shapes.hidden), random_of(shapes.inner)
    for rows in (1, 7, 40):
        x = random_of(rows, shapes.hidden)
        expected = torch_ops.linear(x.double(), weight.double(), bias.double())
        yield f"linear of {rows} rows", kernels.linear(x, weight, bias=bias), expected, 0


def _planner(kernels: Kernels, shapes: Shapes, random_of: Callable[..., torch.Tensor]) -> Iterator[Pair]:
    tables = [[3, 1, 4], [2, 5], [0]]
    lengths, new = [2 * shapes.block_size + 1, shapes.block_size + 2, 1], [1, 4, 1]
    tokens = [list(range(length)) for length in lengths]
    got = kernels.plan_step(lengths, new, tables, shapes.block_size, tokens=tokens)
    expected = torch_ops.plan_step(lengths, new, tables, shapes.block_size, tokens=tokens)
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            yield f"plan_step's {name}", torch.as_tensor(getattr(got, name)), value, 0


_TESTS: dict[str, Callable[[Kernels, Shapes, Callable[..., torch.Tensor]], Iterator[Pair]]] = {
    "attention": _attention,
    "kv_write": _kv_write,
    "norm": _norm,
    "rotary": _rotary,
    "qkv": _qkv,
    "activation": _activation,
    "linear": _linear,
    "matmul": matmul_pairs,
    "planner": _planner,
}
