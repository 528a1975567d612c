"""Weights in the blocks that GGUF files store, as they are in the file.

With d and dmin in float16 and all numbers as ggml defines them:
    Q4_0   32 values in 18 bytes: d, 16 bytes whose low halves are the first 16 values. (q - 8) * d
    Q8_0   32 values in 34 bytes: d, 32 signed bytes. q * d
    Q4_K   256 values in 144 bytes: d, dmin, 12 bytes with 6 bits of scale s and of minimum m for each of 8 groups, 128
           bytes: of each 32 the low halves are one group and the high halves the next. q * d * s - m * dmin
    Q5_K   256 values in 176 bytes: as Q4_K, with 32 bytes before the last 128 whose bit g is the fifth of group g
    Q6_K   256 values in 210 bytes: 128 bytes of low halves, 64 of the upper 2 bits, 16 signed scales s of 16 values
           each, d. (q - 32) * d * s
"""

from typing import NamedTuple

import torch

from .packed import PackedWeight

__all__ = ["KINDS", "dequantize_blocks", "from_gguf"]


class Kind(NamedTuple):
    """A type of blocks: its number in ggml, and the values and bytes of a block."""

    number: int
    values: int
    bytes: int
    group_size: int


KINDS = {
    "Q4_0": Kind(2, 32, 18, 32),
    "Q8_0": Kind(8, 32, 34, 32),
    "Q4_K": Kind(12, 256, 144, 32),
    "Q5_K": Kind(13, 256, 176, 32),
    "Q6_K": Kind(14, 256, 210, 16),
}


def from_gguf(data: torch.Tensor, kind: str, shape: tuple[int, int]) -> PackedWeight:
    """A weight whose rows are blocks of one type, without a copy where ``data`` is contiguous.

    Args:
        data: uint8 ``[N, row_bytes]``, or of any shape with as many bytes.
        kind: ``"Q4_0"``, ``"Q8_0"``, ``"Q4_K"``, ``"Q5_K"`` or ``"Q6_K"``.
        shape: ``(N, K)``. K must be a multiple of the 32, or 256 with a K, values of a block.

    Raises:
        ValueError: a kind that is not one of these, or data that are not the bytes of such a weight.
    """
    if kind not in KINDS:
        raise ValueError(
            f'kind must be one of {", ".join(KINDS)}, got "{kind}"; dequantize it and quantize it anew'
        )
    rows, columns = shape
    of = KINDS[kind]
    if rows < 0 or columns <= 0 or columns % of.values:
        raise ValueError(
            f"shape {tuple(shape)} must be (N, K) with K a multiple of {kind}'s {of.values} values"
        )
    row_bytes = columns // of.values * of.bytes
    if data.dtype != torch.uint8 or data.numel() != rows * row_bytes:
        raise ValueError(
            f"data must be uint8 of {rows} rows of {row_bytes} bytes for {kind} of shape {tuple(shape)}, "
            f"got {data.dtype} of shape {tuple(data.shape)}"
        )
    blocks = data.reshape(rows, row_bytes).contiguous()
    return PackedWeight((rows, columns), "gguf", of.group_size, blocks, kind=kind)


def dequantize_blocks(packed: PackedWeight) -> torch.Tensor:
    """The weights that blocks stand for, float32 ``[N, K]``."""
    assert packed.kind is not None
    blocks = packed.weight.reshape(-1, KINDS[packed.kind].bytes)
    return _VALUES[packed.kind](blocks).reshape(packed.shape)


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The float16 at byte ``start`` of each block, as float32 [B, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    halves = blocks[:, 2:]
    return (torch.cat((halves & 15, halves >> 4), dim=1).float() - 8) * _half(blocks, 0)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    return _scaled(blocks, _nibbles(blocks[:, 16:]))


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    fifth = (blocks[:, None, 16:48] >> _range(8, blocks)[:, None]) & 1
    return _scaled(blocks, _nibbles(blocks[:, 48:]) | (fifth << 4))


def _nibbles(halves: torch.Tensor) -> torch.Tensor:
    """[B, 128] bytes to [B, 8, 32] values."""
    chunks = halves.view(-1, 4, 32)
    return torch.stack((chunks & 15, chunks >> 4), dim=2).view(-1, 8, 32)


def _scaled(blocks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[B, 8, 32] values times their groups' scales less their minimums."""
    low, high, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((low & 63, (both & 15) | (low >> 6 << 4)), dim=1)
    minimums = torch.cat((high & 63, (both >> 4) | (high >> 6 << 4)), dim=1)
    steps, offsets = _half(blocks, 0) * scales, _half(blocks, 2) * minimums
    return values * steps[..., None] - offsets[..., None]


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = blocks[:, :128].view(-1, 2, 1, 64) >> _range(2, blocks, 4)[:, None]
    high = blocks[:, 128:192].view(-1, 2, 1, 32) >> _range(4, blocks, 2)[:, None]
    values = (low & 15).reshape(-1, 16, 16) | ((high & 3).reshape(-1, 16, 16) << 4)
    scales = blocks[:, 192:208].contiguous().view(torch.int8) * _half(blocks, 208)
    return (values.float() - 32) * scales[..., None]


def _range(count: int, like: torch.Tensor, step: int = 1) -> torch.Tensor:
    return torch.arange(0, count * step, step, dtype=torch.uint8, device=like.device)


_VALUES = {"Q4_0": _q4_0, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
