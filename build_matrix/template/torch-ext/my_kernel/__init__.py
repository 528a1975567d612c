"""my-kernel: a scaled sum, to be replaced by what the kernel is for."""

from __future__ import annotations

import torch

from ._ops import add_op_namespace_prefix, ops

__all__ = ["scale_add"]


def scale_add(x: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale * x + y`.

    Args:
        x, y: contiguous float32 tensors of one shape on one device.
        scale: factor of `x`.

    Returns:
        A new tensor of their shape.

    Raises:
        RuntimeError: another dtype, layout or number of elements.
    """
    out = torch.empty_like(y)
    ops.scale_add(out, x, y, scale)
    return out


@torch.library.register_fake(add_op_namespace_prefix("scale_add"))
def _(out: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: float) -> None:
    """Shapes alone, for torch.compile: `out` is written in place."""
