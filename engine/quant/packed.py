"""A quantized weight as the matmul slot takes it, and the slot's functions in plain torch.

Fields and layouts are those of the package quantized-matmul, so that either side multiplies what the other packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight [N, K]: element (n, k) stands for (weight[n, k] - zero) * scale.

    format: "int8", weight int8 [N, K]; "int4", uint8 [N, ceil(K / 2)] with the even k in the low four bits; "fp8",
    float8_e4m3fn [N, K]; "gguf", uint8 [N, bytes], blocks of `kind` with all that belongs to them. group_size: input
    channels that share a scale. scales: float32 [N] where that is K, else [N, K / group_size] in any floating dtype.
    zeros: [N, K / group_size], uint8 or, where they are no whole numbers or below 0, float32; None is 8 for int4,
    else 0.

    Plain torch multiplies all but "gguf", of which gguf_blocks.grouped makes something that it does.
    """

    shape: tuple[int, int]
    format: str
    group_size: int
    weight: torch.Tensor
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    kind: str | None = None


def quantize(weight: torch.Tensor, format: str, group_size: int = 128) -> PackedWeight:
    """Round weight [N, K] to "int8" or "fp8" (one scale a row) or "int4" (one for `group_size` columns).

    Raises:
        ValueError: unknown format, or K is no multiple of the group.
    """
    rows, columns = weight.shape
    if format not in ("int8", "int4", "fp8"):
        raise ValueError(f"unknown format {format!r}: expected int8, int4 or fp8")
    group, largest = {"int8": (columns, 127.0), "fp8": (columns, 448.0), "int4": (group_size, 7.0)}[format]
    if columns % group:
        raise ValueError(f"{columns} columns are no multiple of the group of {group}")
    grouped = weight.to(torch.float32).view(rows, -1, group)
    scales = grouped.abs().amax(-1, keepdim=True) / largest
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    scaled = (grouped / scales).view(rows, columns)
    scales = scales.view(rows) if format != "int4" else scales.squeeze(-1)
    if format == "fp8":
        return PackedWeight((rows, columns), format, group, scaled.to(torch.float8_e4m3fn), scales)
    values = scaled.round().to(torch.int8)
    if format == "int8":
        return PackedWeight((rows, columns), format, group, values, scales)
    return PackedWeight((rows, columns), format, group, pack_nibbles((values + 8).view(torch.uint8)), scales)


def dequantize(packed: PackedWeight) -> torch.Tensor:
    """The weight that `packed` stands for, float32 [N, K]."""
    if packed.scales is None:
        raise ValueError(
            f"a weight of format {packed.format!r} has no scales: pass it through gguf_blocks.grouped"
        )
    rows, columns = packed.shape
    values = packed.weight
    if packed.format == "int4":
        values = unpack_nibbles(values)[:, :columns]
    grouped = values.to(torch.float32).view(rows, -1, packed.group_size)
    if packed.zeros is not None:
        grouped = grouped - packed.zeros.to(torch.float32)[..., None]
    elif packed.format == "int4":
        grouped = grouped - 8
    return (grouped * packed.scales.to(torch.float32).view(rows, -1, 1)).view(rows, columns)


def matmul(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] times the transpose of the packed weight [N, K], plus bias [N]: [..., N] in x's dtype."""
    return functional.linear(x, dequantize(packed).to(x.dtype), bias)


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K] below 16 -> uint8 [N, ceil(K / 2)], the even column in the low half."""
    if values.shape[1] % 2:
        values = functional.pad(values, (0, 1))
    return values[:, ::2] | values[:, 1::2] << 4


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [N, B] -> uint8 [N, 2 B]: low half, high half."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
