"""One benchmark: a call, its peers, the result they must have; and how they are checked and timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol, runtime_checkable

import torch

from .._machine import Probe

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
Call = Callable[[], torch.Tensor]

# Bytes: activations as small are in a cache when their turn comes, and such a call costs little more than calling, so
# several in a row are timed (for so many seconds), after as many that are not.
_HOT = 4 << 20
_A_WHILE = 1e-3
_REST = 1e-2
# Microseconds: a further peer that took as much in at least three turns takes part in no more of them.
_ENOUGH = 20e6


@runtime_checkable
class Elsewhere(Protocol):
    """A call whose work and clock are in another process."""

    def __call__(self) -> torch.Tensor: ...

    def microseconds(self, hot: bool) -> float:
        """Of one call there; `hot` as for `timed`."""
        ...


def nothing() -> None:
    """What resets a case whose calls leave their inputs alone."""


@dataclass(frozen=True)
class Case:
    """A kernel call, torch eager's, and the result both must have. No call may change its inputs' meaning.

    `work` is in bytes, or where it is held against `fma` in operations. `others` are further peers by name, `failed`
    those that could not be asked, with the reason; `inputs` are what a peer makes its call from. The reference may be
    of the first rows of a result alone. `reset` gives inputs that calls write to the values the reference is of.
    """

    name: str
    shape: str
    dtype: torch.dtype
    work: int
    kernel: Call
    peer: Call
    reference: Call
    against: str = "read"
    others: Mapping[str, Call | Elsewhere] = field(default_factory=dict)
    tolerance: float = 0.0  # beside that of the dtype, where a kernel is allowed to round more
    inputs: Mapping[str, Any] = field(default_factory=dict)
    reset: Callable[[], None] = nothing
    failed: Mapping[str, str] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)  # of a further peer that rounds more still


@dataclass(frozen=True)
class Result:
    """One row; times in microseconds, rates in GB/s or GFLOP/s, error relative to the reference's largest element.

    `percent` of what the probe `against` reached in the same turns; None without one. `peer_us` and `ratio` are torch
    eager's, `other_ratios` those of further peers: above 1 the kernel is faster. `failed` has for each peer that
    was asked and has no ratio the reason.
    """

    name: str
    shape: str
    dtype: str
    relative_error: float
    kernel_us: tuple[float, float, float]
    peer_us: tuple[float, float, float]
    giga_per_second: float
    ratio: float
    against: str
    percent: float | None
    other_ratios: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(case: Case, repeats: int, device: str, machine: Mapping[str, Probe]) -> Result:
    """Check, warm up, then time kernel, peers and probe in turn.

    A further peer whose result is wrong, or that fails, is in the row's `failed`, and everything else is measured.

    Raises:
        SystemExit: the kernel's result is not the reference.
    """
    expected = case.reference()
    case.reset()
    error = relative_error(case.kernel(), expected)
    if not error < TOLERANCE[case.dtype] + case.tolerance:
        raise SystemExit(f"{case.name} {case.shape} {case.dtype}: relative error {error:.1e}; not timed")
    others, failed = checked(case, expected)
    probe = machine.get(case.against)
    calls: dict[str, Callable[[], Any]] = {"kernel": case.kernel, "peer": case.peer, **others}
    if probe:
        calls["limit"] = probe.run
        probe.run()
    case.peer()
    times: dict[str, list[float]] = {name: [] for name in calls}
    small = case.against != "fma" and case.work < _HOT
    for turn in range(repeats):
        order = tuple(calls.items())
        first = turn % len(order)  # none always follows the same one, which leaves the caches as it does
        for name, call in order[first:] + order[:first]:
            if name in others and len(times[name]) >= 3 and sum(times[name]) > _ENOUGH:
                continue
            try:
                times[name].append(timed(call, device, small and name != "limit"))
            except Exception as reason:
                if name not in others:
                    raise
                failed[name] = one_line(reason)
                del calls[name]
    kernel, limit = times["kernel"], times.get("limit")
    ratios = {name: median(times[name]) / median(kernel) for name in ("peer", *others) if name in calls}
    percent = None
    if probe and limit:
        percent = 100 * (case.work / median(kernel)) / (probe.work / median(limit))
    return Result(
        name=case.name,
        shape=case.shape,
        dtype=str(case.dtype).removeprefix("torch."),
        relative_error=error,
        kernel_us=spread(kernel),
        peer_us=spread(times["peer"]),
        giga_per_second=case.work / median(kernel) / 1e3,
        ratio=ratios.pop("peer"),
        against=case.against,
        percent=percent,
        other_ratios=ratios,
        failed=failed,
    )


def checked(case: Case, expected: torch.Tensor) -> tuple[dict[str, Call | Elsewhere], dict[str, str]]:
    """The further peers whose result is the reference, and for each other one the reason."""
    right, failed = {}, dict(case.failed)
    for name, call in case.others.items():
        case.reset()
        try:
            error = relative_error(call(), expected)
        except Exception as reason:
            failed[name] = one_line(reason)
            continue
        if error < TOLERANCE[case.dtype] + case.tolerance + case.tolerances.get(name, 0.0):
            right[name] = call
        else:
            failed[name] = f"relative error {error:.1e}"
    return right, failed


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference by the largest element; of a result with more rows those that are expected.

    Raises:
        ValueError: the result has fewer elements.
    """
    if result.numel() < expected.numel():
        raise ValueError(f"a result of shape {tuple(result.shape)}, expected {tuple(expected.shape)}")
    rows = result.reshape(-1)[: expected.numel()].view(expected.shape)
    return float((rows.double() - expected).abs().max() / expected.abs().max())


def one_line(reason: Exception) -> str:
    """What went wrong, by its first line, which names it."""
    first = next(iter(str(reason).splitlines()), "")
    return f"{type(reason).__name__}: {first}"[:200]


def timed(call: Callable[[], Any], device: str, hot: bool = False) -> float:
    """Microseconds of one call; on a GPU of one of twenty in a row, so that launches overlap as in use.

    `hot`: of the calls of a millisecond, after a millisecond of calls that are not timed.
    """
    if isinstance(call, Elsewhere):
        return call.microseconds(hot)
    if device == "cpu":
        if hot:
            time.sleep(_REST)  # as those in other processes do: threads of what was called before still spin
            mean_of_a_while(call)
            return mean_of_a_while(call)
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6
    if hot:
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / 20


def mean_of_a_while(call: Callable[[], Any]) -> float:
    calls, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < _A_WHILE:
        call()
        calls += 1
    return taken / calls * 1e6


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return round(median(values), 2), round(min(values), 2), round(max(values), 2)


def line(row: Result) -> str:
    unit = "GFLOP/s" if row.against == "fma" else "GB/s"
    part = "" if row.percent is None else f"  {row.percent:>4.0f}% of {row.against}"
    return (
        f"{row.name:<25} {row.shape:<30} {row.dtype:<9} {row.kernel_us[0]:>10.1f} us"
        f"  {row.giga_per_second:>7.1f} {unit}{part}  {row.ratio:>6.2f}x of torch eager  error {row.relative_error:.0e}"
        + "".join(f"  {ratio:.2f}x of {name}" for name, ratio in row.other_ratios.items())
        + "".join(f"\n    {name} left out: {reason}" for name, reason in row.failed.items())
    )
