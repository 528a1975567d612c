"""One benchmark: a call, its peers, the result they must have; and how they are checked and timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from .._machine import Probe

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
Call = Callable[[], torch.Tensor]

# Bytes: activations as small are in a cache when their turn comes, so a call goes before the timed one.
_HOT = 2 << 20


@dataclass(frozen=True)
class Case:
    """A kernel call, torch eager's, and the result both must have. No call may change its inputs' meaning.

    `work` is in bytes, or where it is held against `fma` in operations. `others` are further peers by name.
    """

    name: str
    shape: str
    dtype: torch.dtype
    work: int
    kernel: Call
    peer: Call
    reference: Call
    against: str = "read"
    others: Mapping[str, Call] = field(default_factory=dict)
    tolerance: float = 0.0  # beside that of the dtype, where a kernel is allowed to round more


@dataclass(frozen=True)
class Result:
    """One row; times in microseconds, rates in GB/s or GFLOP/s, error relative to the reference's largest element.

    `percent` of what the probe `against` reached in the same turns; None on a GPU, which has no such probe yet.
    `peer_us` and `ratio` are torch eager's, `other_ratios` those of further peers: above 1 the kernel is faster.
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


def measure(case: Case, repeats: int, device: str, machine: Mapping[str, Probe]) -> Result:
    """Check, warm up, then time kernel, peers and probe in turn.

    Raises:
        SystemExit: the kernel's result is not the reference.
    """
    expected = case.reference()
    error = float((case.kernel().double() - expected).abs().max() / expected.abs().max())
    if not error < TOLERANCE[case.dtype] + case.tolerance:
        raise SystemExit(f"{case.name} {case.shape} {case.dtype}: relative error {error:.1e}; not timed")
    probe = machine.get(case.against)
    calls: dict[str, Callable[[], Any]] = {"kernel": case.kernel, "peer": case.peer, **case.others}
    if probe:
        calls["limit"] = probe.run
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        if name != "kernel":
            call()
    small = case.against != "fma" and case.work < _HOT
    for _ in range(repeats):
        for name, call in calls.items():
            if small and name != "limit":
                call()
            times[name].append(timed(call, device))
    kernel, limit = times["kernel"], times.get("limit")
    ratios = {name: median(times[name]) / median(kernel) for name in ("peer", *case.others)}
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
    )


def timed(call: Callable[[], Any], device: str) -> float:
    """Microseconds of one call; on a GPU of one of twenty in a row, so that launches overlap as in use."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / 20


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
    )
