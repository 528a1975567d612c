"""Each kind of case of the kernels' benchmark, small, with torch as the kernel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

ROOT = Path(__file__).parents[2]


def part(name: str) -> Any:
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return import_module(f"benchmarks.kernels.{name}")


@dataclass(frozen=True)
class Packed:
    """A symmetric int4 weight, or one of e4m3 by channel, as quantized-matmul stores it."""

    shape: tuple[int, int]
    group_size: int
    weight: torch.Tensor
    scales: torch.Tensor


def quantize(weight: torch.Tensor, format: str) -> Packed:
    if format == "fp8":
        scales = weight.float().abs().amax(1) / 448
        stored = (weight.float() / scales[:, None]).to(torch.float8_e4m3fn)
        return Packed(tuple(weight.shape), weight.shape[1], stored, scales)
    values = torch.randint(1, 16, weight.shape, dtype=torch.uint8)
    scales = torch.rand(weight.shape[0], weight.shape[1] // 128).to(weight.dtype) / 8 + 0.01
    return Packed(tuple(weight.shape), 128, values[:, 0::2] | values[:, 1::2] << 4, scales)


def dequantize(packed: Packed) -> torch.Tensor:
    if packed.weight.dtype == torch.float8_e4m3fn:
        return packed.weight.float() * packed.scales[:, None]
    values = torch.stack([packed.weight & 15, packed.weight >> 4], dim=-1).flatten(1).float() - 8
    return values * packed.scales.float().repeat_interleave(packed.group_size, dim=1)


def matmul(x: torch.Tensor, packed: Packed, **activations: bool) -> torch.Tensor:
    return functional.linear(x.float(), dequantize(packed)).to(x.dtype)


QUANTIZED = SimpleNamespace(
    quantize=quantize, dequantize=dequantize, matmul=matmul, prepack=lambda packed: packed
)


def cases(dtype: torch.dtype) -> Iterator[Any]:
    """Each kind of case, small; torch eager is the kernel."""
    rows, attention, tiny = part("rows"), part("attention"), part("models").Model(64, 4, 2, 32, 128)
    products = part("matmul").matmul
    makes = [
        partial(rows.rms_norm, None, 3, 64, dtype),
        partial(rows.fused_add_rms_norm, None, 5, 64, dtype),
        partial(rows.silu_and_mul, None, 3, 64, dtype),
        partial(rows.gelu_tanh_and_mul, None, 3, 64, dtype),
        partial(rows.rotary, None, 3, dtype),
        partial(rows.rotary_embedding, None, 3, dtype),
        partial(rows.qk_norm_rope_cache, None, 5, dtype),
        partial(attention.attention, None, tiny, 3, 256, dtype),
        partial(attention.prefill, None, tiny, 48, dtype),
    ]
    for make in makes:
        case = make()
        yield replace(case, kernel=case.peer)
    yield products(QUANTIZED, "int4", 1, 256, 64, dtype)
    yield products(QUANTIZED, "int4", 17, 256, 64, dtype)
    yield products(QUANTIZED, "int4", 3, 256, 64, dtype, rounded=True)
    yield products(QUANTIZED, "fp8", 3, 256, 64, dtype, rounded=True)


def case_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return next(case for case in cases(dtype) if case.name == name)


def ones(**changes: Any) -> Any:
    one = lambda: torch.ones(3)  # noqa: E731
    return part("case").Case("ones", "3", torch.float32, 12, one, one, lambda: one().double(), **changes)


def measured(case: Any, *peers: Any) -> Any:
    return part("case").measure(part("peers").beside(case, peers), 2, "cpu", {})
