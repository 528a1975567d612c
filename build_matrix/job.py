"""What there is to build of one kernel: plain data, which executors on other machines can be given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .build_file import BuildFile
from .load import Loader
from .matrix import Cell, Matrix
from .provenance import Provenance
from .toolchain.cache import ToolchainCache


@dataclass(frozen=True)
class Job:
    """The cells to build of one kernel, and where the package goes."""

    build: BuildFile
    cells: Sequence[Cell]
    matrix: Matrix
    out: Path
    cache: ToolchainCache
    origin: Provenance
    loader: Loader | None = None
