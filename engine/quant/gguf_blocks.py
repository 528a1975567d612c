"""GGUF's blocks as packed weights: as they are for kernels that multiply blocks, in groups for plain torch.

Value for value: nothing is rounded but a zero point that float32 has to hold.

    Q4_0   32 values: fp16 d, 16 bytes; the low halves are the first 16. (q - 8) * d
    Q8_0   32 values: fp16 d, int8 q. q * d
    Q4_K   256 values in 8 groups: fp16 d and dmin, 6 bits of scale s and of minimum m for each group, 4-bit q.
           q * d * s - m * dmin
    Q5_K   as Q4_K, with 32 bytes before the values' low halves whose bit g is the fifth of group g
    Q6_K   256 values in 16 groups: 4 low and 2 high bits of q, int8 scales s, fp16 d. (q - 32) * d * s

What other types hold is dequantized by the `gguf` package when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .packed import PackedWeight, pack_nibbles


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The fp16 number at byte `start` of each block [B, bytes], as float32 [B]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).to(torch.float32).squeeze(1)


def _q4_0(blocks: torch.Tensor, shape: tuple[int, int]) -> PackedWeight:
    halves = blocks[:, 2:]
    values = torch.cat((halves & 15, halves >> 4), dim=1).view(shape)
    return PackedWeight(shape, "int4", 32, pack_nibbles(values), _half(blocks, 0).view(shape[0], -1))


def _q8_0(blocks: torch.Tensor, shape: tuple[int, int]) -> PackedWeight:
    values = blocks[:, 2:].contiguous().view(torch.int8).view(shape)
    scales = _half(blocks, 0).view(shape[0], -1)
    return PackedWeight(shape, "int8", 32, values, scales if shape[1] > 32 else scales.squeeze(1))


def _q4_k(blocks: torch.Tensor, shape: tuple[int, int]) -> PackedWeight:
    values, scales, zeros = _with_minimums(blocks, _nibbles(blocks[:, 16:]), shape)
    return PackedWeight(shape, "int4", 32, pack_nibbles(values), scales, zeros)


def _q5_k(blocks: torch.Tensor, shape: tuple[int, int]) -> PackedWeight:
    fifth = blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    values, scales, zeros = _with_minimums(blocks, _nibbles(blocks[:, 48:]) | fifth << 4, shape)
    return PackedWeight(shape, "int8", 32, values.view(torch.int8), scales, zeros)


def _nibbles(halves: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 128] -> [B, 8, 32]: of each 32 bytes the low halves, then the high ones."""
    chunks = halves.view(-1, 4, 32)
    return torch.stack((chunks & 15, chunks >> 4), dim=2).view(-1, 8, 32)


def _with_minimums(
    blocks: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values [N, K], scales and zeros [N, K / 32] of values [B, 8, 32] and the blocks [B, bytes] that they are from."""
    low, high, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((low & 63, (both & 15) | (low >> 6 << 4)), dim=1)
    minimum = torch.cat((high & 63, (both >> 4) | (high >> 6 << 4)), dim=1)
    scales = _half(blocks, 0)[:, None] * scale
    offsets = _half(blocks, 2)[:, None] * minimum
    # A group without a scale is all -offset: as zero points count in scales, its values become 0 and its scale 1.
    flat = scales == 0
    values = values.masked_fill(flat[..., None], 0)
    scales = scales.masked_fill(flat, 1)
    return values.view(shape), scales.view(shape[0], -1), (offsets / scales).view(shape[0], -1)


def _q6_k(blocks: torch.Tensor, shape: tuple[int, int]) -> PackedWeight:
    low = blocks[:, :128].view(-1, 2, 1, 64) >> torch.tensor([0, 4], dtype=torch.uint8).view(1, 1, 2, 1)
    high = blocks[:, 128:192].view(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(
        1, 1, 4, 1
    )
    values = (low & 15).reshape(-1, 256) | (high & 3).reshape(-1, 256) << 4
    scales = _half(blocks, 208)[:, None] * blocks[:, 192:208].contiguous().view(torch.int8)
    signed = values.to(torch.int8) - 32
    return PackedWeight(shape, "int8", 16, signed.view(shape), scales.view(shape[0], -1))


BLOCKS: dict[str, Callable[[torch.Tensor, tuple[int, int]], PackedWeight]] = {
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
BYTES = {"Q4_0": 18, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
# Q4_0 is what kernels have always had: int4 in groups of 32.
FORMATS = {kind: "int4" if kind == "Q4_0" else "gguf" for kind in BLOCKS}


def read_blocks(data: torch.Tensor, kind: str, shape: tuple[int, int]) -> PackedWeight:
    """The weight [N, K] whose rows are blocks of a type in BLOCKS; data uint8 [N, bytes], which is not copied."""
    group_size = 16 if kind == "Q6_K" else 32
    packed = PackedWeight(shape, "gguf", group_size, data.view(shape[0], -1), kind=kind)
    return grouped(packed) if FORMATS[kind] != "gguf" else packed


def grouped(packed: PackedWeight) -> PackedWeight:
    """The same values with scales and zero points by group, which plain torch multiplies; itself if it is no "gguf"."""
    if packed.kind is None:
        return packed
    return BLOCKS[packed.kind](packed.weight.reshape(-1, BYTES[packed.kind]), packed.shape)
