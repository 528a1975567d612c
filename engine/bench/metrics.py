"""What a contestant's times say. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Run:
    """What a contestant's program wrote down.

    times: for each request, when each of its tokens came, in seconds since all requests were handed over;
    tokens: their ids. kv_waste: mean share of places in held cache blocks that held no token; None: unknown.
    peak_memory: bytes, of the process at its largest, what it mapped included. cpu_seconds: of all threads,
    while measured.
    """

    version: str
    times: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    kv_waste: float | None
    peak_memory: int
    cpu_seconds: float
    load_seconds: float


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds. tokens_per_second counts generated tokens; times are seconds.

    first_token: from when the requests were handed over to a request's first token, mean over the requests.
    gap_p50, gap_p99: between a token and the next of the same request; 0 where nobody had two.
    """

    tokens_per_second: float
    first_token: float
    gap_p50: float
    gap_p99: float
    kv_waste: float | None
    peak_memory: int
    cpu_seconds: float
    load_seconds: float


def figures(runs: Sequence[Run]) -> Figures:
    """The medians of a contestant's rounds, at least one."""
    each = [_figures(run) for run in runs]
    wastes = [figure.kv_waste for figure in each if figure.kv_waste is not None]

    def median(name: str) -> float:
        return float(statistics.median(getattr(figure, name) for figure in each))

    return Figures(
        median("tokens_per_second"),
        median("first_token"),
        median("gap_p50"),
        median("gap_p99"),
        statistics.median(wastes) if wastes else None,
        round(median("peak_memory")),
        median("cpu_seconds"),
        median("load_seconds"),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of them do not exceed; 0 if there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _figures(run: Run) -> Figures:
    seconds = max(times[-1] for times in run.times)
    gaps = [after - before for times in run.times for before, after in pairwise(times)]
    return Figures(
        tokens_per_second=sum(map(len, run.tokens)) / seconds,
        first_token=statistics.fmean(times[0] for times in run.times),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        kv_waste=run.kv_waste,
        peak_memory=run.peak_memory,
        cpu_seconds=run.cpu_seconds,
        load_seconds=run.load_seconds,
    )
