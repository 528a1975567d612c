"""Imports without passes of the garbage collector.

An import allocates much and leaves no garbage, yet a few thousand new objects have the interpreter look through all
that there are: with torch imported 90 ms, more than the import itself.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """While the block runs, no pass begins; afterwards as before, whichever thread leaves first."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
