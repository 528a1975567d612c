"""Products with quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from .case import Case


def matmul(
    kernel: ModuleType,
    format: str,
    tokens: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    rounded: bool = False,
) -> Case:
    """Against the dense product with the same values: what quantization saves is bytes.

    `rounded`: x may be rounded to 8 bits, as llama.cpp rounds it and W8A8 schemes do.
    """
    weight = torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5
    # A model has many: none is in a cache when its turn comes, and together they are as much as the probe reads.
    copies = 32 if tokens == 1 else 1
    one = kernel.quantize(weight, format)
    # As a program has them that loads them once.
    packed = [
        kernel.prepack(replace(one, weight=one.weight.clone(), scales=one.scales.clone()))
        for _ in range(copies)
    ]
    dense = [kernel.dequantize(one).to(dtype).clone() for _ in range(-(-copies // 4))] * min(copies, 4)
    x = torch.randn(tokens, inputs, dtype=dtype)
    stored = packed[0].weight.nbytes + packed[0].scales.nbytes

    coarse = f"{'fp8' if format == 'fp8' else 'int8'}_activations"
    multiply = partial(kernel.matmul, **{coarse: True}) if rounded else kernel.matmul

    return Case(
        f"matmul {format}" + (", x in 8 bits" if rounded else ""),
        f"{tokens} × {inputs} × {outputs}" + (f", {copies} weights" if copies > 1 else ""),
        dtype,
        copies * stored if tokens <= 16 else 2 * tokens * inputs * outputs,
        lambda: each(lambda w: multiply(x, w), packed),
        lambda: each(lambda w: functional.linear(x, w), dense),
        lambda: functional.linear(x.double(), kernel.dequantize(packed[0]).double()),
        "read" if tokens <= 16 else "fma",
        # Half a step of e4m3 is a sixteenth of the value, of int8 a 254th of the row's largest.
        tolerance=0.0 if not rounded else 0.06 if format == "fp8" else 0.02,
        inputs={"x": x, "packed": one, "copies": copies},
    )


def each(call: Callable[[Any], torch.Tensor], weights: list[Any]) -> torch.Tensor:
    """The result with the last of several weights."""
    for one in weights:
        out = call(one)
    return out
