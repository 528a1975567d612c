"""Blocks of GGUF's types: random ones, and what each value stands for in float64, byte by byte as ggml defines them."""

from __future__ import annotations

import struct

import torch

HALVES = {
    "Q4_0": [0],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}  # where float16 numbers are
SIZES = {"Q4_0": (32, 18), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)}


def random_blocks(kind: str, rows: int, columns: int) -> torch.Tensor:
    """uint8 [rows, bytes]: every bit random but those of float16 numbers: of either sign, and one in four subnormal."""
    values, size = SIZES[kind]
    blocks = torch.randint(0, 256, (rows * columns // values, size), dtype=torch.uint8)
    for at in HALVES[kind]:
        size = torch.where(torch.rand(len(blocks), 1) < 0.25, 2**-18, 2**-6)
        blocks[:, at : at + 2] = (torch.randn(len(blocks), 1) * size).half().view(torch.uint8)
    return blocks.view(rows, -1)


def weights(data: torch.Tensor, kind: str) -> torch.Tensor:
    """uint8 [N, bytes] to float64 [N, K]."""
    size = SIZES[kind][1]
    rows = [
        [value for at in range(0, len(row), size) for value in BLOCKS[kind](bytes(row[at : at + size]))]
        for row in data.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


def half(block: bytes, at: int) -> float:
    return struct.unpack_from("<e", block, at)[0]


def q4_0(block: bytes) -> list[float]:
    d, codes = half(block, 0), block[2:]
    return [d * ((code & 15) - 8) for code in codes] + [d * ((code >> 4) - 8) for code in codes]


def q8_0(block: bytes) -> list[float]:
    return [half(block, 0) * code for code in struct.unpack_from("32b", block, 2)]


def scale_and_minimum(packed: bytes, group: int) -> tuple[int, int]:
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    last = packed[group + 4]
    return (last & 15) + 16 * (packed[group - 4] >> 6), (last >> 4) + 16 * (packed[group] >> 6)


def with_minimums(block: bytes, value) -> list[float]:
    """Of Q4_K and Q5_K: value(group, i) is an integer."""
    out = []
    for group in range(8):
        scale, minimum = scale_and_minimum(block[4:16], group)
        for i in range(32):
            out.append(half(block, 0) * scale * value(group, i) - half(block, 2) * minimum)
    return out


def q4_k(block: bytes) -> list[float]:
    return with_minimums(block, lambda group, i: block[16 + group // 2 * 32 + i] >> 4 * (group % 2) & 15)


def q5_k(block: bytes) -> list[float]:
    def value(group: int, i: int) -> int:
        return (block[48 + group // 2 * 32 + i] >> 4 * (group % 2) & 15) + 16 * (block[16 + i] >> group & 1)

    return with_minimums(block, value)


def q6_k(block: bytes) -> list[float]:
    low, high, scales = block[:128], block[128:192], struct.unpack_from("16b", block, 192)
    out = []
    for k in range(256):
        half_of, within = divmod(k, 128)
        quarter, i = divmod(within, 32)
        four = low[64 * half_of + 32 * (quarter % 2) + i] >> 4 * (quarter // 2) & 15
        two = high[32 * half_of + i] >> 2 * quarter & 3
        out.append(half(block, 208) * scales[k // 16] * (four + 16 * two - 32))
    return out


BLOCKS = {"Q4_0": q4_0, "Q8_0": q8_0, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}
