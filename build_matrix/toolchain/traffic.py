"""How many bytes were fetched, and what for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Lock

Count = Callable[[int], None]
"""Told the size, in bytes, of each piece that came over the network."""


def uncounted(size: int) -> None:
    """The `Count` of a caller that does not want to know."""


class Traffic:
    """Bytes of files fetched so far, as they came over the network, by label; threads may share it.

    What pip and apt fetch to find files (their indexes) is not in it, nor are the headers of HTTP.
    """

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._lock = Lock()

    def count(self, label: str) -> Count:
        """A function that adds to `label`."""

        def add(size: int) -> None:
            with self._lock:
                self._bytes[label] += size

        return add

    def of(self, label: str) -> int:
        """Bytes fetched under `label`."""
        with self._lock:
            return self._bytes[label]

    @property
    def total(self) -> int:
        """Bytes fetched under any label."""
        with self._lock:
            return self._bytes.total()
