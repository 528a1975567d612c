"""A reference continuous-batching engine whose kernels are swapped in by name.

from engine import LLM, SamplingParams
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import LLM, Completion
    from .sampler import SamplingParams

__all__ = ["LLM", "Completion", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Import on first use: `khub engine --help` needs no torch."""
    if name in ("LLM", "Completion"):
        from . import engine

        return getattr(engine, name)
    if name == "SamplingParams":
        from .sampler import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
