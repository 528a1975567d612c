"""int4 weights in the order in which a CPU's vectors take them: panels of eight rows."""

from dataclasses import replace
from typing import Optional

import torch

from .packed import PackedWeight

__all__ = ["from_panels", "to_panels"]

ROWS = 8


def to_panels(packed: PackedWeight) -> PackedWeight:
    """An int4 weight with K a multiple of 8, its rows in panels; the rows that the last one lacks have scales of 0."""
    panels = -(-packed.shape[0] // ROWS)
    words = _pad(packed.weight).view(panels, ROWS, -1, 4)
    weight = words.transpose(1, 2).contiguous().view(panels, -1, ROWS * 4)
    return replace(
        packed, weight=weight, scales=_columns(packed.scales), zeros=_columns(packed.zeros), panels=True
    )


def from_panels(packed: PackedWeight) -> PackedWeight:
    """The weight as it was before ``to_panels``."""
    rows = packed.shape[0]
    words = packed.weight.view(packed.weight.shape[0], -1, ROWS, 4)
    weight = words.transpose(1, 2).flatten(2).flatten(0, 1)[:rows].contiguous()
    return replace(
        packed,
        weight=weight,
        scales=_rows(packed.scales, rows),
        zeros=_rows(packed.zeros, rows),
        panels=False,
    )


def _pad(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, 0, -tensor.shape[0] % ROWS))


def _columns(tensor: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    if tensor is None:
        return None
    return _pad(tensor).view(-1, ROWS, tensor.shape[1]).transpose(1, 2).contiguous()


def _rows(tensor: Optional[torch.Tensor], rows: int) -> Optional[torch.Tensor]:
    return None if tensor is None else tensor.transpose(1, 2).flatten(0, 1)[:rows].contiguous()
