"""The replicas of each application that this process sends requests to, as Ray Serve last told its router.

Ray Serve makes the router itself, out of a pickled copy of its class, so this is where the router and the
front meet: a module that both import.
"""

from __future__ import annotations

from collections.abc import Iterable

_ids: dict[str, frozenset[str]] = {}


def note(application: str, replicas: Iterable[str]) -> None:
    """These are running; from whichever thread the router has."""
    _ids[application] = frozenset(replicas)


def running(application: str) -> frozenset[str]:
    """Ids of the replicas that requests can be sent to."""
    return _ids.get(application, frozenset())
