"""A request on its way to a replica."""

from __future__ import annotations

from dataclasses import dataclass

from .prefix import Keys


@dataclass(frozen=True)
class Asked:
    """An HTTP request as a replica's application sees it, and where it should go.

    `keys`: names of the prompt's beginning (`prefix.py`). `avoid`: replicas that failed on it. `only`: the one
    that is meant, for what is asked of each.
    """

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    client: tuple[str, int] | None = None
    keys: Keys = ()
    avoid: frozenset[str] = frozenset()
    only: str | None = None
