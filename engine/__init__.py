"""A reference continuous-batching engine whose kernels are swapped in by name.

from engine import LLM, SamplingParams
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import LLM
    from .output import Completion, Delta
    from .params import SamplingParams

__all__ = ["LLM", "Completion", "Delta", "SamplingParams"]
_WHERE = {"LLM": "engine", "Completion": "output", "Delta": "output", "SamplingParams": "params"}


def __getattr__(name: str) -> Any:
    """Import on first use: `khub engine --help` needs no torch."""
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
