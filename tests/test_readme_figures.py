"""README: every figure in its comparison is that of the measurement it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MEASURED: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "loader.json").read_text())

# What a row says, the case and the figure that it is of, the unit, how many of it are one of the figure's own.
ROWS = [
    ("`from … import get_kernel`", "from X import get_kernel", "import_s", "ms", 1e3),
    ("import and first load, hub 50 ms away", "cold, version=1, 50 ms", "whole_s", "ms", 1e3),
    ("requests of it", "cold, version=1, 50 ms", "requests", "", 1),
    ("first load, hub on the same machine, import not counted", "cold, version=1, 0 ms", "call_s", "ms", 1e3),
    ("import and load from the cache", "warm, version=1, 0 ms", "whole_s", "ms", 1e3),
    ("a whole process that does so, with torch's import", "warm, version=1, 0 ms", "process_s", "ms", 1e3),
    ("loading again in the process", "loaded, version=1, 0 ms", "again_ns", "µs", 1e-3),
    ("bringing 500 MB", "install large", "call_s", "s", 1),
    ("memory for it", "install large", "peak_bytes", "MB", 1e-6),
]


def rows() -> list[str]:
    """The table's lines as the measurement has them."""
    lines = []
    for label, case, figure, unit, scale in ROWS:
        ours, theirs = (
            _median(MEASURED["results"][case][who][figure]) * scale for who in ("hub_loader", "kernels")
        )
        result = f"{theirs / ours:,.2g}x better" if theirs > ours else f"**{ours / theirs:.2g}x worse**"
        if theirs / ours >= 100:
            result = f"{theirs / ours:,.0f}x better"
        lines.append(f"| {label} | {_shown(ours, unit)} | {_shown(theirs, unit)} | {result} |")
    return lines


def _median(figure: dict[str, float]) -> float:
    return figure["median"]


def _shown(value: float, unit: str) -> str:
    return f"{value:,.{1 if value < 10 and unit else 0}f} {unit}".strip()


def test_comparison_in_readme_is_what_was_measured_with_its_losses() -> None:
    header = "| | `hub_loader` | `kernels` | |\n|---|---|---|---|\n"
    assert header + "\n".join(rows()) + "\n" in README
    assert any("worse" in row for row in rows())
    assert f"`kernels` {MEASURED['versions']['kernels']}" in README
