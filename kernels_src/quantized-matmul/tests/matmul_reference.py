"""The product with a packed weight in plain torch and float64, element by element from the definition."""

from __future__ import annotations

import math

import torch


def e4m3(bits: int) -> float:
    """The number of a byte, by the definition (OCP 8-bit floating point, 2023)."""
    exponent, mantissa = bits >> 3 & 15, bits & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -magnitude if bits & 128 else magnitude


def fp8_weights(packed) -> torch.Tensor:
    rows, columns = packed.shape
    values = torch.tensor([e4m3(bits) for bits in range(256)], dtype=torch.float64)
    out = values[packed.weight.cpu().view(torch.uint8).long()]
    scales = packed.scales.cpu().double()
    if scales.dim() == 1:
        return out * scales[:, None]
    return out * scales[torch.arange(rows)[:, None] // 128, torch.arange(columns) // 128]


def weights(packed) -> torch.Tensor:
    rows, columns = packed.shape
    if packed.format == "fp8":
        return fp8_weights(packed)
    # Lists: Python reads a number of a tensor fifty times as slowly.
    weight, scales = packed.weight.tolist(), packed.scales.tolist()
    zeros = None if packed.zeros is None else packed.zeros.tolist()

    def number(n: int, k: int) -> float:
        if packed.format == "int8":
            return weight[n][k] * scales[n]
        byte, group = weight[n][k // 2], k // packed.group_size
        value = byte >> 4 if k % 2 else byte & 15
        return (value - (8 if zeros is None else zeros[n][group])) * scales[n][group]

    out = [[number(n, k) for k in range(columns)] for n in range(rows)]
    return torch.tensor(out, dtype=torch.float64).reshape(rows, columns)


def matmul(x, weight, bias=None):
    out = x.double() @ weight.T
    return out if bias is None else out + bias.double()
