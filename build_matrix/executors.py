"""Build many cells: where each runs is an executor's business, what comes out is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from hub_loader.errors import MissingExtraError

from .build import Outcome, build_cell
from .build_file import BuildFile
from .job import Job
from .load import Loader
from .matrix import Cell, Matrix
from .package import write_index
from .provenance import provenance
from .toolchain.cache import ToolchainCache

EXECUTORS = ("local", "ray")


class Executor(Protocol):
    """Runs a job's cells: one outcome each, in any order; the variants end up in the job's `out`."""

    def run(self, job: Job, started: Callable[[Cell], None]) -> Iterator[Outcome]:
        """Build every cell of `job`; a failed cell stops no other. `started` is told when one begins."""
        ...


class LocalExecutor:
    """One cell after the other on this machine; the compilers of a cell run side by side."""

    def run(self, job: Job, started: Callable[[Cell], None]) -> Iterator[Outcome]:
        for cell in job.cells:
            started(cell)
            yield build_cell(job.build, cell, job.matrix, job.out, job.cache, job.origin, loader=job.loader)


def executor_named(name: str) -> Executor:
    """The executor called `name`, one of EXECUTORS.

    Raises:
        MissingExtraError: Ray is asked for and not installed.
    """
    if name == "local":
        return LocalExecutor()
    try:
        from .ray_executor import RayExecutor
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"--executor {name} needs {error.name!r}, which is not installed: pip install 'kernel-hub[ray]'"
        ) from None
    return RayExecutor()


def build_cells(
    build: BuildFile,
    cells: Sequence[Cell],
    matrix: Matrix,
    out: Path,
    cache: ToolchainCache,
    started: Callable[[Cell], None] = lambda cell: None,
    executor: Executor | None = None,
    loader: Loader | None = None,
) -> Iterator[Outcome]:
    """Build `cells` into the package folder `out`, one outcome each; a failed cell stops no other.

    `index.json` is rewritten after the last cell when at least one succeeded.
    """
    job = Job(build, cells, matrix, out, cache, provenance(build.folder), loader)
    succeeded = False
    for outcome in (executor or LocalExecutor()).run(job, started):
        succeeded |= outcome.error is None
        yield outcome
    if succeeded:
        write_index(out)
