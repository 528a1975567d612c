"""Products with quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from .case import Call, Case

Each = Callable[[Callable[[Any], torch.Tensor], list[Any]], torch.Tensor]


def matmul(
    kernel: ModuleType,
    format: str,
    tokens: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    int8_activations: bool = False,
) -> Case:
    """Against the dense product with the same values: what quantization saves is bytes.

    `int8_activations`: x may be rounded to 8 bits, as llama.cpp rounds it.
    """
    weight = torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5
    copies = 12 if tokens == 1 else 1  # a model has many: none is in a cache when its turn comes
    one = kernel.quantize(weight, format)
    packed = [replace(one, weight=one.weight.clone(), scales=one.scales.clone()) for _ in range(copies)]
    dense = [kernel.dequantize(one).to(dtype).clone() for _ in range(copies)]
    x = torch.randn(tokens, inputs, dtype=dtype)
    stored = packed[0].weight.nbytes + packed[0].scales.nbytes

    multiply = partial(kernel.matmul, int8_activations=True) if int8_activations else kernel.matmul

    def each(call: Callable[[Any], torch.Tensor], weights: list[Any]) -> torch.Tensor:
        for one in weights:
            out = call(one)
        return out

    return Case(
        f"matmul {format}" + (", x in 8 bits" if int8_activations else ""),
        f"{tokens} × {inputs} × {outputs}" + (f", {copies} weights" if copies > 1 else ""),
        dtype,
        copies * stored if tokens <= 16 else 2 * tokens * inputs * outputs,
        lambda: each(lambda w: multiply(x, w), packed),
        lambda: each(lambda w: functional.linear(x, w), dense),
        lambda: functional.linear(x.double(), kernel.dequantize(packed[0]).double()),
        "read" if tokens <= 16 else "fma",
        # Of many rows it takes seconds a call on processors without AVX-512.
        torchs_own(x, packed, each) if format == "int4" and x.device.type == "cpu" and tokens <= 16 else {},
        tolerance=0.02 if int8_activations else 0.0,
    )


def torchs_own(x: torch.Tensor, packed: list[Any], each: Each) -> dict[str, Call]:
    """torch's int4 product for CPUs over the same values: (nibble - 8) * scale, a row of scales for each group."""
    weights = []
    for one in packed:
        nibbles = torch.stack([one.weight & 15, one.weight >> 4], dim=-1).flatten(1).int()
        scales = one.scales.t().to(x.dtype)
        both = torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()
        weights.append((torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1), one.group_size, both))
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return {"torch int4pack": lambda: each(lambda w: multiply(x, *w), weights)}
