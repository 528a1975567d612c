"""Imports without passes of the garbage collector.

An import allocates much and leaves no garbage, yet a few thousand new objects have the interpreter look through all
that there are: with torch imported 90 ms, more than the import itself.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_resting: set[int] = set()  # the threads that turned it off and will turn it on


@contextmanager
def uncollected() -> Iterator[None]:
    """While the block runs, no pass begins; afterwards as before, whichever thread leaves first."""
    if not gc.isenabled():
        yield
        return
    _resting.add(threading.get_ident())
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        _resting.discard(threading.get_ident())


def _wake() -> None:
    """After a fork: a thread that would turn it on again is the parent's."""
    if _resting and threading.get_ident() not in _resting:
        _resting.clear()
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_wake)
