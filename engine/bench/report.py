"""A benchmark's outcome as a table, as JSON and as a picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hub_loader.errors import MissingExtraError, UsageError

from .metrics import Figures, Run, figures

PICTURES = (".png", ".svg")
_COLUMNS = ("tok/s", "first token", "gap p50", "gap p99", "KV waste", "memory", "vs ours", "same tokens")


@dataclass(frozen=True)
class Outcome:
    """A contestant's rounds in one workload; the first outcome of a workload is what the others compare with."""

    workload: str
    name: str
    runs: tuple[Run, ...]

    @property
    def figures(self) -> Figures:
        """Medians over the rounds."""
        return figures(self.runs)


def format_table(outcomes: Sequence[Outcome]) -> str:
    """One line for each contestant, and a table for each workload. "vs ours": how much faster the first one is."""
    parts = []
    for workload, group in _by_workload(outcomes).items():
        rows = [(workload, *_COLUMNS), *(_row(outcome, group[0]) for outcome in group)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        parts += [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        parts.append("")
    return "\n".join(parts[:-1])


def to_json(outcomes: Sequence[Outcome], setting: Mapping[str, Any]) -> dict[str, Any]:
    """What was run and where, and each contestant's figures."""
    results = []
    for group in _by_workload(outcomes).values():
        for outcome in group:
            figures = outcome.figures
            results.append(
                {
                    "workload": outcome.workload,
                    "contestant": outcome.name,
                    "version": outcome.runs[0].version,
                    **asdict(figures),
                    "ours_over_this": group[0].figures.tokens_per_second / figures.tokens_per_second,
                    "same_tokens": same_tokens(group[0].runs[0], outcome.runs[0]),
                    "rounds": [asdict(metrics) for metrics in (figures_of(run) for run in outcome.runs)],
                }
            )
    machine = {
        "processor": _processor(),
        "processors": sorted(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }
    return {"setting": dict(setting), "machine": machine, "results": results}


def figures_of(run: Run) -> Figures:
    """One round's figures."""
    return figures([run])


def same_tokens(ours: Run, theirs: Run) -> float:
    """The share of requests that got the same tokens from both."""
    pairs = list(zip(ours.tokens, theirs.tokens, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def write_plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Tokens per second and time to first token as bars, one group for each workload; PNG or SVG.

    Raises:
        UsageError: another kind of file.
        MissingExtraError: matplotlib is not installed.
    """
    check_picture(path)
    figure_module = import_module("matplotlib.figure")
    groups = _by_workload(outcomes)
    figure = figure_module.Figure(figsize=(4.5 * 2, 2.6 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 2, squeeze=False)
    for (workload, group), (speed, first) in zip(groups.items(), axes, strict=True):
        names = [outcome.name for outcome in group][::-1]
        colours = ["#9aa5b1"] * (len(names) - 1) + ["#1f6feb"]
        for axis, title, values in (
            (speed, f"{workload}: tokens/s", [o.figures.tokens_per_second for o in group][::-1]),
            (first, f"{workload}: first token, s", [o.figures.first_token for o in group][::-1]),
        ):
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(bars, [f"{value:.3g}" for value in values], padding=3)
            axis.set_title(title, loc="left", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.15)
    figure.savefig(path, dpi=150)


def check_picture(path: Path) -> None:
    """Raises UsageError or MissingExtraError if `write_plot` could not write there."""
    if path.suffix not in PICTURES:
        raise UsageError(f"--plot {path}: the name must end in {' or '.join(PICTURES)}")
    try:
        import_module("matplotlib.figure")
    except ModuleNotFoundError:
        raise MissingExtraError("--plot needs matplotlib: pip install 'kernel-hub[bench]'") from None


def _by_workload(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.workload, []).append(outcome)
    return groups


def _row(outcome: Outcome, ours: Outcome) -> tuple[str, ...]:
    figures = outcome.figures
    version = outcome.runs[0].version
    return (
        f"{outcome.name} {version}".strip(),
        f"{figures.tokens_per_second:.1f}",
        f"{figures.first_token * 1000:.0f} ms",
        f"{figures.gap_p50 * 1000:.1f} ms",
        f"{figures.gap_p99 * 1000:.1f} ms",
        "-" if figures.kv_waste is None else f"{figures.kv_waste:.1%}",
        f"{figures.peak_memory / 2**20:.0f} MiB",
        f"{ours.figures.tokens_per_second / figures.tokens_per_second:.2f}x",
        f"{same_tokens(ours.runs[0], outcome.runs[0]):.0%}",
    )


def _processor() -> str:
    """The processor's name, from Linux where it says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
