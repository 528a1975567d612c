"""A rectifier, small enough to read at a glance: what the build tests compile."""

import torch

from ._ops import ops

__all__ = ["relu"]


def relu(input: torch.Tensor) -> torch.Tensor:
    """max(0, input), elementwise, for contiguous float32 of any shape."""
    out = torch.empty_like(input)
    ops.relu(out, input)
    return out
