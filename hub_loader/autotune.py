"""Choose the fastest of several implementations by timing them once on this device, for the shapes given.

    attend = Fastest({"native": native.attend, "triton": triton.attend}, ids={...}, cache=config.cache)
    out = attend(query, key_cache, value_cache)        # timed at the first call with these shapes
    attend.verdicts()                                  # what was chosen, and each one's seconds

A verdict is kept on disk under what it depends on: device, torch, the candidates' kernel ids, and the shapes,
dtypes and plain values of the arguments. Another process with the same takes it without timing. Candidates are
called repeatedly with the caller's own arguments, so they must give the same result each time; one that writes
to its inputs needs `prepare`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import NoMatchingVariantError, UsageError
from .verdicts import (
    Verdict,
    cuda_device,
    describe_arguments,
    read_verdict,
    report,
    verdict_key,
    write_verdict,
)

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Runs a call and returns the seconds it took on the device."""
Prepare = Callable[[Sequence[Any], Mapping[str, Any]], tuple[Sequence[Any], Mapping[str, Any]]]
"""Fresh arguments like those given, made outside of the time measured."""

_WARM_UP, _REPEATS = 3, 11

logger = logging.getLogger("hub_loader")


class Fastest:
    """Callable like its candidates; the first call with new shapes times them. See the module's docstring.

    Args:
        candidates: implementations by name; equal medians go to the earlier one.
        ids: the kernel id (or another version) of each, so that a new build is timed anew.
        cache: the loader's cache folder; verdicts lie in `autotune/` there.
        prepare: fresh arguments for one call; None uses the caller's own.
        timer: None takes CUDA events where an argument is on a CUDA device, else a clock.
        say: is told each verdict that was not remembered.
    """

    def __init__(
        self,
        candidates: Mapping[str, Callable[..., Any]],
        *,
        ids: Mapping[str, str],
        cache: Path,
        prepare: Prepare | None = None,
        timer: Timer | None = None,
        warm_up: int = _WARM_UP,
        repeats: int = _REPEATS,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        if not candidates or set(candidates) != set(ids) or repeats < 1:
            raise UsageError(
                "choosing the fastest needs one candidate or more, an id for each, and one repeat"
            )
        self._candidates, self._ids, self._cache = dict(candidates), dict(ids), cache
        self._prepare, self._timer, self._say = prepare, timer, say
        self._warm_up, self._repeats = warm_up, repeats
        self._verdicts: dict[tuple[Any, ...], Verdict] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the fastest candidate for these arguments.

        Raises:
            NoMatchingVariantError: no candidate can run with them.
        """
        return self._candidates[self.verdict(*args, **kwargs).chosen](*args, **kwargs)

    def verdict(self, *args: Any, **kwargs: Any) -> Verdict:
        """The verdict for these arguments: known, remembered on disk, or measured now.

        Raises:
            NoMatchingVariantError: no candidate can run with them.
        """
        signature = describe_arguments(args, kwargs)
        if signature not in self._verdicts:
            self._verdicts[signature] = self._find(args, kwargs)
        return self._verdicts[signature]

    def verdicts(self) -> list[Verdict]:
        """What was decided so far in this process, oldest first."""
        return list(self._verdicts.values())

    def _find(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Verdict:
        key = verdict_key(self._ids, args, kwargs)
        known = read_verdict(self._cache, key, self._candidates)
        if known is not None:
            return known
        timer = self._timer or (cuda_timer() if cuda_device(args, kwargs) is not None else clock_timer())
        seconds, failed = measure(
            {name: self._calls(call, args, kwargs) for name, call in self._candidates.items()},
            timer,
            warm_up=self._warm_up,
            repeats=self._repeats,
        )
        if not seconds:
            reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
            raise NoMatchingVariantError(f"no implementation runs with these arguments: {reasons}")
        verdict = Verdict(min(seconds, key=lambda name: seconds[name]), seconds, failed, key)
        write_verdict(self._cache, verdict)
        self._say(report(verdict))
        return verdict

    def _calls(
        self, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[[], Call]:
        def ready() -> Call:
            fresh, named = (args, kwargs) if self._prepare is None else self._prepare(args, kwargs)
            return lambda: call(*fresh, **named)

        return ready


def measure(
    candidates: Mapping[str, Callable[[], Call]], timer: Timer, *, warm_up: int, repeats: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each candidate, and the error of each that raises.

    A candidate makes a call ready, which is what is timed. They take turns, so that a clock that changes its
    speed changes it for all.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    failed: dict[str, str] = {}
    for number in range(warm_up + repeats):
        for name, ready in candidates.items():
            if name in failed:
                continue
            try:
                seconds = timer(ready())
            except Exception as error:  # whatever it raises, it is no choice; the verdict reports it
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                continue
            if number >= warm_up:
                taken[name].append(seconds)
    return {name: _median(times) for name, times in taken.items() if name not in failed}, failed


def _median(values: Sequence[float]) -> float:
    """Of one value or more; the statistics module would triple what importing this one costs."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def clock_timer(clock: Callable[[], float] = time.perf_counter) -> Timer:
    """A timer by `clock`, in seconds."""

    def timer(call: Call) -> float:
        begin = clock()
        call()
        return clock() - begin

    return timer


def cuda_timer() -> Timer:
    """A timer by CUDA events on the current stream: the device's time, without waiting for the host."""
    cuda = sys.modules["torch"].cuda  # there is a tensor, so torch is imported

    def timer(call: Call) -> float:
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return timer
