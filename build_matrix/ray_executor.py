"""Build cells as tasks of a Ray cluster: `khub build --executor ray`.

A task carries the kernel's sources as bytes and hands the variant's files back as bytes, so machines need share
no folder, only an equal kernel-hub[ray] installation and a g++. Each machine keeps its own toolchain cache. What
comes back is held against the digests it states and the id that the same sources have here. A machine that
dies costs its cells a retry elsewhere, nothing else.

A cell goes to the machines that declare its label, where any does: `ray start --resources '{"khub-cuda": 4}'`
takes up to four CUDA cells at a time, `khub-cpu`, `khub-x86_64` and `khub-aarch64` likewise.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from hub_loader.errors import CompileError, IntegrityError, KernelHubError, ToolchainError
from hub_loader.source_files import source_files

from .build import Outcome, build_cell
from .build_toml import read_build_file
from .job import Job
from .jobs import HEAVY_UNIT, Limits
from .matrix import Cell, Matrix
from .package import check_files, install_variant
from .provenance import Provenance, kernel_id
from .toolchain.cache import ToolchainCache

_RETRIES = 3
# A task is one compiler at a time: the cluster's cores are filled with cells.
_TASK = Limits(jobs=1, heavy=1)


@dataclass(frozen=True)
class Remote:
    """What a task hands back: the outcome, the variant's files by path, and the compilers' log."""

    outcome: Outcome
    files: Mapping[str, bytes]
    log: bytes


class RayExecutor:
    """Cells as Ray tasks on the cluster that RAY_ADDRESS names, or on one started here for the build."""

    def run(self, job: Job, started: Callable[[Cell], None]) -> Iterator[Outcome]:
        # Ray's own notices (a machine died) go to stdout, where the caller's result belongs.
        with redirect_stdout(sys.stderr):
            _connect()
            try:
                yield from _run(job, started)
            finally:
                ray.shutdown()


def requirements(cell: Cell, declared: Mapping[str, float]) -> dict[str, float]:
    """The custom resources a cell's task asks for: of its labels, those that some machine declares."""
    platform = cell.variant.platform
    labels = [f"khub-{cell.variant.backend.name}"] + ([f"khub-{platform.arch}"] if platform else [])
    return {label: 1.0 for label in labels if label in declared}


def _connect() -> None:
    try:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise ToolchainError(f"no Ray cluster at {where}: {error}; check RAY_ADDRESS") from None


def _run(job: Job, started: Callable[[Cell], None]) -> Iterator[Outcome]:
    sources = ray.put(
        {
            str(path.relative_to(job.build.folder)): path.read_bytes()
            for path in source_files(job.build.folder)
        }
    )
    declared = ray.cluster_resources()
    cells: dict[ray.ObjectRef[Remote], Cell] = {}
    for cell in job.cells:
        started(cell)
        task = ray.remote(build_from_bytes).options(
            name=str(cell),
            num_cpus=_TASK.jobs,
            memory=HEAVY_UNIT,
            resources=requirements(cell, declared),
            max_retries=_RETRIES,
        )
        cells[task.remote(sources, cell, job.matrix, job.origin)] = cell
    while cells:
        (done,), _ = ray.wait(list(cells), num_returns=1)
        cell = cells.pop(done)
        try:
            remote = ray.get(done)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            yield Outcome(cell, 0.0, error=ToolchainError(f"{cell}: lost on the cluster: {reason}"))
            continue
        yield receive(job, remote)


def build_from_bytes(sources: Mapping[str, bytes], cell: Cell, matrix: Matrix, origin: Provenance) -> Remote:
    """Build `cell` of the kernel whose files are `sources`, with this machine's toolchains."""
    with tempfile.TemporaryDirectory(prefix="khub-") as work:
        folder = Path(work) / "source"
        for name, data in sources.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        build = read_build_file(folder)
        outcome = build_cell(build, cell, matrix, Path(work) / "package", ToolchainCache(), origin, _TASK)
        files = {}
        if outcome.folder is not None:
            for path in sorted(outcome.folder.rglob("*")):
                if path.is_file():
                    files[path.relative_to(outcome.folder).as_posix()] = path.read_bytes()
        log = b"" if outcome.log is None else outcome.log.read_bytes()
    return Remote(outcome, files, log)


def receive(job: Job, remote: Remote) -> Outcome:
    """Put a task's files into the package here, after checking them, and its log into the cache.

    A result that is not what it claims, or not of these sources, becomes the outcome's IntegrityError.
    """
    outcome = remote.outcome
    log = job.cache.root / "logs" / f"{kernel_id(job.build, outcome.cell)}-{outcome.cell}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(remote.log)
    if outcome.compiled is not None:
        outcome = replace(outcome, compiled=replace(outcome.compiled, log=log))
    error = outcome.error
    if isinstance(error, CompileError):  # its message names the log there
        return replace(outcome, error=CompileError(str(error).replace(str(error.log), str(log)), log))
    if error is not None:
        return outcome
    try:
        check(remote.files, kernel_id(job.build, outcome.cell), outcome.cell)
        return replace(outcome, folder=install_variant(remote.files, str(outcome.cell), job.out))
    except KernelHubError as error:
        return replace(outcome, folder=None, error=error)


def check(files: Mapping[str, bytes], expected_id: str, cell: Cell) -> None:
    """Hold a variant's files against the digests in their own metadata and the id they must have.

    Raises:
        IntegrityError: a file that differs, is missing or is not listed; or another id.
    """
    metadata = check_files(files, f"{cell} from the cluster")
    if metadata.id != expected_id:
        raise IntegrityError(
            f"{cell}: the cluster built {metadata.id}, these sources are {expected_id}: "
            "install the same kernel-hub on every machine"
        )
