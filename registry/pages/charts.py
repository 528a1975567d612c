"""Numbers for the drawings that templates make as SVG: positions and lengths, no markup. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from .benchmarks import Benchmark

WIDTH = 320.0
HEIGHT = 64.0
DAYS = 30


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: left edge, top, width and height in the drawing's units, and what it says."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Downloads:
    """Downloads of the last DAYS days, oldest first; `weeks` are (first day, count) for the table."""

    bars: tuple[Bar, ...]
    total: int
    most: int
    weeks: tuple[tuple[date, int], ...]


def downloads_chart(counts: Mapping[date, int], today: date) -> Downloads:
    """The drawing of daily counts, days without one counted as none."""
    days = [today - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    values = [counts.get(day, 0) for day in days]
    most = max(values)
    step = WIDTH / DAYS
    bars = []
    for number, (day, value) in enumerate(zip(days, values, strict=True)):
        height = max(HEIGHT * value / most, 2.0) if value else 1.0
        label = f"{day:%d %B %Y}: {value:,}"
        bars.append(Bar(number * step + 1, HEIGHT - height, step - 2, height, label))
    weeks: dict[date, int] = {}
    for day, value in zip(days, values, strict=True):
        monday = day - timedelta(days=day.weekday())
        weeks[monday] = weeks.get(monday, 0) + value
    return Downloads(tuple(bars), sum(values), most, tuple(weeks.items()))


BAR_SPAN = 500.0


@dataclass(frozen=True)
class BenchmarkBars:
    """One row of a benchmark's drawing: its case, and a bar for each series with a figure."""

    case: str
    bars: tuple[tuple[int, float, str], ...]


def benchmark_bars(benchmark: Benchmark) -> tuple[BenchmarkBars, ...]:
    """For each case (series number, length up to BAR_SPAN, figure); the longest bar of each case is full.

    Cases differ by orders of magnitude, so each has a scale of its own: what is compared are its series.
    """
    drawn = []
    for row in benchmark.rows:
        most = max((value for value in row.values if value is not None), default=0.0) or 1.0
        bars = tuple(
            (number, max(BAR_SPAN * value / most, 1.0), figure(value))
            for number, value in enumerate(row.values)
            if value is not None
        )
        drawn.append(BenchmarkBars(row.case, bars))
    return tuple(drawn)


def figure(value: float) -> str:
    """A figure with three significant digits."""
    if value and not 0.01 <= value < 1e6:
        return f"{value:.2e}"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
