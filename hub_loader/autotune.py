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

import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import NoMatchingVariantError, UsageError

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Runs a call and returns the seconds it took on the device."""
Prepare = Callable[[Sequence[Any], Mapping[str, Any]], tuple[Sequence[Any], Mapping[str, Any]]]
"""Fresh arguments like those given, made outside of the time measured."""

_WARM_UP, _REPEATS = 3, 11
_BY_TEXT = ("dtype", "device", "layout", "memory_format")  # torch's own plain values

logger = logging.getLogger("hub_loader")


@dataclass(frozen=True)
class Verdict:
    """Which candidate is the fastest for `key`.

    `seconds` is each one's median, `failed` the error of each that could not run; `remembered` says that it was
    read from disk instead of timed.
    """

    chosen: str
    seconds: Mapping[str, float]
    failed: Mapping[str, str]
    key: Mapping[str, Any]
    remembered: bool = False


class Fastest:
    """Callable like its candidates; the first call with new shapes times them. See the module's docstring.

    Args:
        candidates: implementations by name; equal medians go to the earlier one.
        ids: the kernel id (or another version) of each, so that a new build is timed anew.
        cache: the loader's cache folder; verdicts lie in `autotune/` there.
        prepare: fresh arguments for one call; None uses the caller's own.
        timer: None takes CUDA events where an argument is on a CUDA device, else a clock.
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
    ) -> None:
        if not candidates or set(candidates) != set(ids) or repeats < 1:
            raise UsageError(
                "choosing the fastest needs one candidate or more, an id for each, and one repeat"
            )
        self._candidates, self._ids, self._folder = dict(candidates), dict(ids), cache / "autotune"
        self._prepare, self._timer = prepare, timer
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
        key = {
            **describe_device(args, kwargs),
            "kernels": self._ids,
            "arguments": describe_arguments(args, kwargs),
        }
        path = self._folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.json"
        known = _read(path, key, self._candidates)
        if known is not None:
            return known
        timer = self._timer or (cuda_timer() if _cuda_device(args, kwargs) is not None else clock_timer())
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
        _write(path, verdict)
        logger.info("%s", report(verdict))
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


def report(verdict: Verdict) -> str:
    """One line: the chosen first, then the others by time, then those that failed."""
    by_time = sorted(verdict.seconds.items(), key=lambda item: (item[0] != verdict.chosen, item[1]))
    times = ", ".join(f"{name} {seconds * 1e6:.1f} µs" for name, seconds in by_time)
    failed = "".join(f"; {name} failed: {error}" for name, error in verdict.failed.items())
    remembered = " (remembered)" if verdict.remembered else ""
    return f"fastest on {verdict.key['device']}: {times}{failed}{remembered}"


def describe_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of the arguments decides the speed, hashable and writable as JSON.

    Tensors by dtype, shape, strides and kind of device; plain values as they are; other objects by type.
    """
    named = ((name, _describe(value)) for name, value in sorted(kwargs.items()))
    return tuple(map(_describe, args)), tuple(named)


def describe_device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The device that the arguments are on, torch's release and the threads it may use."""
    torch = sys.modules.get("torch")
    index = _cuda_device(args, kwargs)
    if torch is not None and index is not None:
        properties = torch.cuda.get_device_properties(index)
        device = f"{properties.name} {properties.major}.{properties.minor}"
    else:
        device = _processor()
    return {
        "device": device,
        "torch": None if torch is None else str(torch.__version__),
        "threads": os.cpu_count() if torch is None else torch.get_num_threads(),
    }


def _describe(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        strides = tuple(value.stride()) if callable(getattr(value, "stride", None)) else None
        kind = getattr(getattr(value, "device", None), "type", None)
        return str(value.dtype), tuple(int(size) for size in value.shape), strides, kind
    if isinstance(value, bool | int | float | str | None) or type(value).__name__ in _BY_TEXT:
        return repr(value)
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _describe(item)) for key, item in value.items()))
    if isinstance(value, Sequence):
        return tuple(map(_describe, value))
    return type(value).__qualname__


def _cuda_device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """The index of the first argument's CUDA device; None where no argument is on one."""
    for value in (*args, *kwargs.values()):
        inside = value if isinstance(value, list | tuple) else (value,)
        for item in inside:
            if getattr(item, "is_cuda", False):
                return int(item.device.index)
    return None


def _processor() -> str:
    with suppress(OSError):  # elsewhere than on Linux the platform module says what there is
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path, key: Mapping[str, Any], candidates: Mapping[str, object]) -> Verdict | None:
    """The verdict on disk; None where there is none, or none for this key that names a candidate."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        verdict = Verdict(**{**data, "remembered": True})
        usable = verdict.key == json.loads(json.dumps(key)) and verdict.chosen in candidates
        return verdict if usable and verdict.chosen in verdict.seconds else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read (%s): the implementations are timed again", path, error)
        return None


def _write(path: Path, verdict: Verdict) -> None:
    """Keep the verdict; a cache that cannot be written costs the next process its timing, and nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({k: v for k, v in asdict(verdict).items() if k != "remembered"}, file, indent=2)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the next process will time the implementations again", path, error
        )
