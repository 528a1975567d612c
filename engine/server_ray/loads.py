"""How many requests each replica is at, as far as whoever sends them knows. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

UNSURE = 10.0  # seconds that a request counts for a replica which has not confirmed that it has it


class Loads:
    """The replica of each request under way, by their ids; times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._where: dict[str, tuple[str, float]] = {}

    def goes(self, request: str, replica: str, now: float) -> None:
        """It is about to be sent there; one that then never is, and is over without a word, stops counting."""
        self._where[request] = replica, now + UNSURE

    def has(self, request: str, replica: str) -> None:
        """The replica has taken it, and `over` will follow."""
        self._where[request] = replica, math.inf

    def over(self, request: str) -> None:
        """It has ended, or was given up."""
        self._where.pop(request, None)

    def of(self, replicas: Collection[str], now: float) -> dict[str, int]:
        """Requests that each of these is at."""
        self._where = {request: place for request, place in self._where.items() if place[1] > now}
        counted = Counter(replica for replica, _ in self._where.values())
        return {replica: counted[replica] for replica in replicas}
