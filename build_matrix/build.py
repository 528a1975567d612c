"""Build the selected cells of one kernel: toolchains, compile, audit, package, index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import AuditError, KernelHubError
from hub_loader.variant import Variant

from .audit import leaked_paths, read_library, violations
from .build_toml import BuildFile
from .compile import Toolchain, compile_cell
from .matrix import Cell, Matrix
from .package import write_index, write_variant
from .provenance import kernel_id, library_name, provenance
from .toolchain.cache import ToolchainCache
from .toolchain.cuda import cuda_toolkit
from .toolchain.host import HostCompiler, find_compiler
from .toolchain.python import python_sdk
from .toolchain.stubs import system_stubs, torch_stubs
from .toolchain.torch_sdk import torch_sdk


@dataclass(frozen=True)
class Outcome:
    """What became of one cell. `error` is None when `folder` holds the variant; `seconds` is wall time."""

    cell: Cell
    seconds: float
    reused: bool = False
    folder: Path | None = None
    error: KernelHubError | None = None


def build_cells(
    build: BuildFile,
    cells: Sequence[Cell],
    matrix: Matrix,
    out: Path,
    cache: ToolchainCache,
    started: Callable[[Cell], None] = lambda cell: None,
) -> Iterator[Outcome]:
    """Build `cells` into the package folder `out`, one outcome each; a failed cell stops no other.

    `index.json` is rewritten after the last cell when at least one succeeded.
    """
    compiler = find_compiler()
    origin = provenance(build.folder)
    succeeded = False
    for cell in cells:
        started(cell)
        begin = time.monotonic()
        try:
            name = kernel_id(build, cell)
            work = cache.root / "objects" / f"{name}-{cell}"
            reused = (work / library_name(name, cell.variant)).is_file()
            library = compile_cell(build, cell, name, toolchain(cache, compiler, matrix, cell), work)
            audit(library, cell, name, matrix, (build.folder, cache.root, Path.home()))
            folder = write_variant(build, cell, name, library, out, origin)
        except KernelHubError as error:
            yield Outcome(cell, time.monotonic() - begin, error=error)
            continue
        succeeded = True
        yield Outcome(cell, time.monotonic() - begin, reused, folder)
    if succeeded:
        write_index(out)


def toolchain(cache: ToolchainCache, compiler: HostCompiler, matrix: Matrix, cell: Cell) -> Toolchain:
    """Everything `cell` is compiled with, fetched or derived on first use."""
    stubs = system_stubs(cache, compiler, matrix.baseline)
    if cell.torch_release is None:
        assert (
            cell.variant.python is not None and cell.pybind11 is not None
        )  # a cell without torch is Python's
        return Toolchain(compiler, python_sdk(cache, cell.variant.python, cell.pybind11), stubs)
    sdk = torch_sdk(cache, cell.torch_release, matrix.platform.arch)
    return Toolchain(
        compiler=compiler,
        sdk=sdk,
        system_stubs=stubs,
        torch_stubs=torch_stubs(cache, compiler, sdk, cell.stable_abi),
        cuda=None if cell.cuda is None else cuda_toolkit(cache, cell.cuda),
    )


def audit(library: Path, cell: Cell, name: str, matrix: Matrix, private: Sequence[Path]) -> None:
    """Refuse a library that breaks a promise of its variant's name, or tells where it was built.

    Raises:
        AuditError: with every violation.
    """
    found = audit_file(library, cell.variant, name, matrix, cell.capabilities)
    found += leaked_paths(library.read_bytes(), private)
    if found:
        raise AuditError(f"{library.name} ({cell}): " + "; ".join(found))


def audit_file(
    library: Path, variant: Variant, name: str, matrix: Matrix, capabilities: Sequence[str]
) -> list[str]:
    """The violations of one built library against its variant's name and the archs its metadata claims."""
    return violations(read_library(library), variant, name, matrix.baseline, capabilities)
