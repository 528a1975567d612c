"""A token bucket for each caller: so many requests a second in the long run, some more at once. Pure but for
what it remembers; time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_MOST_CALLERS = 50_000


@dataclass(frozen=True)
class Rate:
    """Requests per second, and how many may come at once."""

    per_second: float
    at_once: float


class Buckets:
    """The buckets of all callers; who has not been seen for long has a full one, as who is new."""

    def __init__(self) -> None:
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (requests left, at what time)

    def take(self, caller: str, rate: Rate, now: float) -> float:
        """Let one request pass: 0; or the seconds until one may."""
        level, then = self._levels.pop(caller, (rate.at_once, now))
        level = min(rate.at_once, level + max(0.0, now - then) * rate.per_second)
        passes = level >= 1
        self._levels[caller] = (level - 1 if passes else level, now)
        if len(self._levels) > _MOST_CALLERS:
            self._levels.popitem(last=False)  # the one that was quiet for longest
        return 0.0 if passes else (1 - level) / rate.per_second
