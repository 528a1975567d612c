"""Imports of a command that need an optional extra: what is missing is named, with the line that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hub_loader.errors import MissingExtraError


@contextmanager
def needed(command: str, extra: str = "engine") -> Iterator[None]:
    """Imports stand in the block. Raises MissingExtraError where a module is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`{command}` needs {error.name!r}, which is missing: pip install torch 'kernel-hub[{extra}]'"
        ) from None
