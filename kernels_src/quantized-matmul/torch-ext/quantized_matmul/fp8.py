"""fp8 weights: e4m3 (OCP 8-bit floating point, 2023) and float32 scales, by channel or by block of 128 x 128."""

import torch

from .packed import PackedWeight

__all__ = ["BLOCK", "dequantize_fp8", "quantize_fp8"]

BLOCK = 128
"""Rows and columns that share a scale where scales are by block."""
_LARGEST = 448.0


def quantize_fp8(weight: torch.Tensor, blocks: bool) -> PackedWeight:
    """The nearest numbers of a finite ``[N, K]``, the largest of each channel or block at e4m3's largest."""
    wide, (rows, columns) = weight.float(), weight.shape
    if blocks:
        padded = torch.nn.functional.pad(wide.abs(), (0, -columns % BLOCK, 0, -rows % BLOCK))
        largest = padded.view(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK).amax(dim=(1, 3))
    else:
        largest = wide.abs().amax(dim=1)
    scales = largest / _LARGEST
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)  # zeros stay zeros with any
    values = (wide / _of_each(scales, rows, columns)).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return PackedWeight((rows, columns), "fp8", BLOCK if blocks else columns, values, scales)


def dequantize_fp8(packed: PackedWeight) -> torch.Tensor:
    """float32 ``[N, K]``."""
    assert packed.scales is not None
    return packed.weight.float() * _of_each(packed.scales, *packed.shape)


def _of_each(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The scale of each weight, [N, K] or [N, 1]."""
    if scales.dim() == 1:
        return scales[:, None]
    spread = scales.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return spread[:rows, :columns]
