"""A linear layer: dense, or through the matmul slot where its weight is packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hub_loader.errors import ModelError

from .kernels import Kernels
from .pages import in_huge_pages
from .quant import packed as plain
from .quant.checkpoint import Loaded
from .quant.gguf_blocks import grouped
from .quant.packed import PackedWeight

INT4_GROUPS = (128, 64, 32)
W4A8 = "w4a8"  # int4 weights, and activations that the kernel may round to 8 bits
SERVED_GROUPS = (32, 64, 128, 256, 512)  # of int4, and all columns: what quantized-matmul multiplies

Map = Callable[[torch.Tensor], torch.Tensor]
Multiply = Callable[..., torch.Tensor]


class Linear:
    """x [T, in] -> [T, out] by `matmul(x, weight, bias=…)`; `order`: the columns of x as the weight has them."""

    def __init__(
        self, matmul: Multiply, weight: Any, bias: torch.Tensor | None, order: torch.Tensor | None = None
    ) -> None:
        self._matmul, self._weight, self._bias, self._order = matmul, weight, bias, order

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._order is not None:
            x = x[..., self._order]
        return self._matmul(x, self._weight, bias=self._bias)


class Joined:
    """Several linear layers of one input that cannot be one matrix: their outputs, side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = parts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self._parts], dim=-1)


def output_format(quantize: str | None) -> str | None:
    """What the output layer is rounded to where the others are rounded to `quantize`."""
    return "int8" if quantize in ("int4", "int8", W4A8) else None


def packed_format(quantize: str) -> str:
    """The format of the weights where linear layers are rounded to `quantize`."""
    return "int4" if quantize == W4A8 else quantize


def make_linear(
    parts: Sequence[Loaded], bias: torch.Tensor | None, kernels: Kernels, quantize: str | None = None
) -> Map:
    """One layer whose outputs are those of `parts`, one after another; `quantize` rounds dense ones to a format.

    bias: of all outputs together.

    Raises:
        ModelError: the weight does not fit the format.
    """
    whole = _merge(parts)
    if whole is not None:
        return _linear(whole, bias, kernels, quantize)
    sizes = [part.weight.shape[0] for part in parts]
    biases = [None] * len(parts) if bias is None else torch.split(bias, sizes)
    return Joined([_linear(part, own, kernels, quantize) for part, own in zip(parts, biases, strict=True)])


def _linear(loaded: Loaded, bias: torch.Tensor | None, kernels: Kernels, quantize: str | None) -> Linear:
    weight = loaded.weight
    if isinstance(weight, PackedWeight):
        if serves(kernels, weight):
            own = kernels.prepack(kernels.PackedWeight(**vars(weight)))
            return Linear(kernels.matmul, own, bias, loaded.order)
        return Linear(plain.matmul, grouped(weight), bias, loaded.order)
    if quantize is None:
        return Linear(kernels.linear, in_huge_pages(weight), bias)
    format = packed_format(quantize)
    groups = {"group_size": group_size(weight.shape[1])} if format == "int4" else {}
    if format not in kernels.formats:
        return Linear(plain.matmul, plain.quantize(weight, format, **groups), bias)
    packed = kernels.prepack(kernels.quantize(weight, format, **groups))
    multiply = kernels.matmul
    if quantize == W4A8 and kernels.takes_int8_activations:
        multiply = partial(multiply, int8_activations=True)
    return Linear(multiply, replace(packed, weight=in_huge_pages(packed.weight)), bias)


def serves(kernels: Kernels, packed: PackedWeight) -> bool:
    """Whether the matmul slot multiplies this weight: its format, int4's group, and bytes by row without zero point."""
    if packed.format not in kernels.formats or packed.format == "gguf":
        return packed.format in kernels.formats
    if packed.zeros is not None and packed.zeros.dtype != torch.uint8:
        return False
    by_row = packed.group_size == packed.shape[1]
    if packed.format == "int4":
        return by_row or packed.group_size in SERVED_GROUPS
    return packed.zeros is None and by_row


def _merge(parts: Sequence[Loaded]) -> Loaded | None:
    """The parts as one matrix; None where they have different formats, or their columns different orders."""
    if len(parts) == 1:
        return parts[0]
    orders = [part.order for part in parts if part.order is not None]
    if orders and not (len(orders) == len(parts) and all(torch.equal(o, orders[0]) for o in orders)):
        return None
    weights = [part.weight for part in parts]
    dense = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    if dense:
        return Loaded(torch.cat(dense)) if len(dense) == len(weights) else None
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    alike = {(w.format, w.kind, w.group_size, _dtype(w.scales), _dtype(w.zeros)) for w in packed}
    if len(alike) > 1:
        return None
    rows = sum(weight.shape[0] for weight in packed)
    merged = replace(
        packed[0],
        shape=(rows, packed[0].shape[1]),
        weight=torch.cat([weight.weight for weight in packed]),
        scales=_cat([weight.scales for weight in packed]),
        zeros=_cat([weight.zeros for weight in packed]),
    )
    return Loaded(merged, parts[0].order)


def _dtype(tensor: torch.Tensor | None) -> torch.dtype | None:
    return None if tensor is None else tensor.dtype


def _cat(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """All or none of them are there."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def group_size(columns: int) -> int:
    """The largest usual group of columns that shares an int4 scale."""
    for size in INT4_GROUPS:
        if columns % size == 0:
            return size
    raise ModelError(f"a layer of {columns} inputs does not divide into int4 groups of 32: use int8")
