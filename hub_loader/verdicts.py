"""Verdicts on speed: what they depend on, how they read, and where they are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

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


def verdict_key(ids: Mapping[str, str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a verdict depends on: the device and torch, the candidates by id, and the arguments."""
    return {
        **describe_device(args, kwargs),
        "kernels": dict(ids),
        "arguments": describe_arguments(args, kwargs),
    }


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
    index = cuda_device(args, kwargs)
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


def cuda_device(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """The index of the first argument's CUDA device; None where no argument is on one."""
    for value in (*args, *kwargs.values()):
        inside = value if isinstance(value, list | tuple) else (value,)
        for item in inside:
            if getattr(item, "is_cuda", False):
                return int(item.device.index)
    return None


@cache
def _processor() -> str:
    with suppress(OSError):  # elsewhere than on Linux the platform module says what there is
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_verdict(cache: Path, key: Mapping[str, Any], candidates: Collection[str]) -> Verdict | None:
    """The verdict in the loader's folder `cache`; None where there is none for this key that names a candidate."""
    path = _path(cache, key)
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


def write_verdict(cache: Path, verdict: Verdict) -> None:
    """Keep the verdict in the loader's folder `cache`.

    One that cannot be written costs the next process its timing, and nothing else.
    """
    path = _path(cache, verdict.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({k: v for k, v in asdict(verdict).items() if k != "remembered"}, file, indent=2)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the next process will time the implementations again", path, error
        )


def _path(cache: Path, key: Mapping[str, Any]) -> Path:
    return cache / "autotune" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.json"
