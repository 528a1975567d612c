"""What a model asks of its kernels, and what a kernel that is tried gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .quant.checkpoint import Loaded

Pair = tuple[str, Any, torch.Tensor, float]
"""A function's name, what the kernel gave, what it should have given, and how far off it may be beside rounding."""


@dataclass(frozen=True)
class Shapes:
    """What a model asks of its kernels.

    options: the sets of attend's arguments that its layers pass. quantized: the formats of its packed weights.
    samples: some of those that a checkpoint stores, read when they are needed.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    epsilon: float
    block_size: int
    dtype: torch.dtype
    options: tuple[dict[str, Any], ...] = ({},)
    quantized: frozenset[str] = frozenset()
    device: str = "cpu"
    samples: Callable[[], list[Loaded]] = list
