"""int4 weights in the order in which a CPU's vectors take them: panels of eight rows."""

from dataclasses import replace
from typing import Optional

import torch

from .packed import PackedWeight

__all__ = ["from_panels", "to_panels"]

ROWS = 8
WORD = 4  # bytes of a weight row that lie together


def to_panels(packed: PackedWeight) -> PackedWeight:
    """An int4 weight with K a multiple of 8, its rows in panels; the rows that the last one lacks have scales of 0."""
    return replace(
        packed,
        weight=_beside(packed.weight, WORD),
        scales=_beside(packed.scales, 1),
        zeros=_beside(packed.zeros, 1),
        panels=True,
    )


def from_panels(packed: PackedWeight) -> PackedWeight:
    """The weight as it was before ``to_panels``."""
    rows = packed.shape[0]
    return replace(
        packed,
        weight=_below(packed.weight, WORD, rows),
        scales=_below(packed.scales, 1, rows),
        zeros=_below(packed.zeros, 1, rows),
        panels=False,
    )


def _beside(rows: Optional[torch.Tensor], size: int) -> Optional[torch.Tensor]:
    """``[N, count * size]`` as ``[ceil(N / 8), count, 8 * size]``."""
    if rows is None:
        return None
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % ROWS))
    pieces = padded.unflatten(1, (rows.shape[1] // size, size)).unflatten(0, (len(padded) // ROWS, ROWS))
    return pieces.transpose(1, 2).flatten(2).contiguous()


def _below(panels: Optional[torch.Tensor], size: int, rows: int) -> Optional[torch.Tensor]:
    if panels is None:
        return None
    pieces = panels.unflatten(2, (ROWS, size)).transpose(1, 2)
    return pieces.flatten(2).flatten(0, 1)[:rows].contiguous()
