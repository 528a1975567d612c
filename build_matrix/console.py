"""What `khub build` prints: progress, foldable groups in CI, the final table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TextIO

from .build import Outcome
from .compile import Compiled
from .matrix import Cell
from .toolchain.torch_sdk import PACKAGE as TORCH
from .toolchain.traffic import Traffic

_HEADINGS = ("variant", "time", "size", "gates", "objects")


class Console:
    """Prints a build's progress to `out`. In GitHub Actions each cell's log is a group that folds."""

    def __init__(self, out: TextIO, environment: Mapping[str, str] = os.environ) -> None:
        self._out = out
        self._fold = environment.get("GITHUB_ACTIONS") == "true"

    def started(self, cell: Cell) -> None:
        """A line that the outcome overwrites, on a terminal only."""
        if self._out.isatty():
            print(f"  building  {cell} …", end="\r", file=self._out, flush=True)

    def finished(self, outcome: Outcome) -> None:
        """One line for each outcome, its compilers' output folded below it in CI."""
        line = _line(outcome)
        if not self._fold:
            print(f"  {line}", file=self._out, flush=True)
            return
        print(f"::group::{line}", file=self._out)
        if outcome.log is not None:
            print(outcome.log.read_text(errors="replace").rstrip(), file=self._out)
        print("::endgroup::", file=self._out)
        if outcome.error is not None:
            print(f"::error title={outcome.cell}::{outcome.error}", file=self._out, flush=True)

    def table(self, outcomes: Sequence[Outcome]) -> None:
        """The whole build, one row for each cell."""
        rows = [_HEADINGS, *map(row, outcomes)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            print(f"  {line.rstrip()}", file=self._out)

    def downloaded(self, traffic: Traffic) -> None:
        """What the build fetched, on one line; nothing when nothing was."""
        if line := downloaded(traffic):
            print(f"  {line}", file=self._out)


def row(outcome: Outcome) -> tuple[str, str, str, str, str]:
    """A cell's row of the table: variant, time, size, gates, objects."""
    failed = outcome.error is not None
    size = "-" if failed else f"{outcome.size / 1024:.0f} KiB"
    gates = "passed" if not failed else f"failed ({type(outcome.error).__name__})"
    return str(outcome.cell), f"{outcome.seconds:.1f} s", size, gates, objects(outcome.compiled)


def objects(compiled: Compiled | None) -> str:
    """How much was compiled: "3 compiled", "reused" or "1 compiled, 2 reused"."""
    if compiled is None:
        return "-"
    if not compiled.compiled:
        return "reused"
    return f"{compiled.compiled} compiled" + (f", {compiled.reused} reused" if compiled.reused else "")


def downloaded(traffic: Traffic) -> str:
    """How much was fetched, in megabytes of a million bytes: "downloaded 38.2 MB (torch headers 12.1 MB)", or ""."""
    if not traffic.total:
        return ""
    headers = traffic.of(TORCH)
    return f"downloaded {_megabytes(traffic.total)}" + (
        f" (torch headers {_megabytes(headers)})" if headers else ""
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _line(outcome: Outcome) -> str:
    verb = "FAILED" if outcome.error is not None else "reused" if outcome.reused else "built"
    return f"{verb:<8}  {outcome.cell}  {outcome.seconds:.1f} s"
