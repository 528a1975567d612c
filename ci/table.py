"""The table of a build as Markdown: `python ci/table.py REPORT.json ...`, reports of `khub build --json`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HEADING = "| kernel | variant | time | size | objects | result |\n|---|---|---|---|---|---|"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="what khub build --json printed")
    reports = [json.loads(path.read_text()) for path in sorted(parser.parse_args().reports)]
    print(markdown(reports))
    return 0


def markdown(reports: list[dict[str, Any]]) -> str:
    """One row for each cell, in the order of kernels and variants; a failed one says why."""
    cells = [(Path(report["package"]).name, cell) for report in reports for cell in report["cells"]]
    cells.sort(key=lambda item: (item[0], item[1]["variant"]))
    failed = sum(cell["error"] is not None for _, cell in cells)
    summary = f"**{len(cells) - failed} of {len(cells)} variants built**"
    return "\n".join([summary, "", HEADING, *(row(name, cell) for name, cell in cells)])


def row(kernel: str, cell: dict[str, Any]) -> str:
    size = f"{cell['size'] / 1024:.0f} KiB" if cell["error"] is None else "-"
    result = "built, gates passed" if cell["error"] is None else escape(cell["error"])
    return f"| {kernel} | `{cell['variant']}` | {cell['seconds']:.1f} s | {size} | {cell['objects']} | {result} |"


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
