"""Build the selected cells of one kernel: toolchains, compile, audit, package, index."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import AuditError, KernelHubError
from hub_loader.variant import Variant

from .audit import leaked_paths, read_library, violations
from .build_toml import BuildFile
from .compile import Toolchain, compile_cell, library_name
from .matrix import Cell, Matrix
from .package import write_index, write_variant
from .provenance import kernel_id, provenance
from .toolchain.cache import ToolchainCache
from .toolchain.cross import compiler_for
from .toolchain.cuda import cuda_headers, cuda_toolkit
from .toolchain.host import HostCompiler, find_compiler
from .toolchain.stubs import system_stubs, torch_libraries, torch_stubs
from .toolchain.torch_sdk import torch_sdk
from .toolchain.tvm_ffi import tvm_ffi_sdk
from .toolchain.wheel_files import wheel_files

# The architecture whose wheel the stable ABI's headers are taken from: they are equal in all of them.
STABLE_HEADERS = "x86_64"


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
            reused, library = False, None
            if not cell.variant.is_noarch:
                reused = (work / library_name(name, cell)).is_file()
                tools = toolchain(cache, compiler, matrix, cell, needed_libraries(build, cell))
                library = compile_cell(build, cell, name, tools, work)
                audit(library, cell, name, matrix, (build.folder, cache.root, Path.home()))
            folder = write_variant(build, cell, name, library, out, origin)
        except KernelHubError as error:
            yield Outcome(cell, time.monotonic() - begin, error=error)
            continue
        succeeded = True
        yield Outcome(cell, time.monotonic() - begin, reused, folder)
    if succeeded:
        write_index(out)


def toolchain(
    cache: ToolchainCache, compiler: HostCompiler, matrix: Matrix, cell: Cell, libraries: Collection[str] = ()
) -> Toolchain:
    """Everything `cell` is compiled with, fetched or derived on first use.

    `libraries` are the names that the cell's components depend on, torch aside.
    """
    arch = cell.platform.arch
    compiler = compiler_for(cache, compiler, matrix, arch)
    cuda = None if cell.cuda is None else cuda_toolkit(cache, cell.cuda, arch)
    includes: dict[str, tuple[Path, ...]] = {}
    framework: tuple[Path, ...]
    if cell.torch_release is None:
        tvm_ffi = tvm_ffi_sdk(cache, compiler, matrix.tvm_ffi, arch)
        includes["tvm-ffi"], framework = tvm_ffi.include_dirs, (tvm_ffi.library,)
    else:
        sdk = torch_sdk(cache, cell.torch_release, arch if cell.stable_abi is None else STABLE_HEADERS)
        includes["torch"] = sdk.include_dirs
        stubs = torch_stubs(cache, compiler, sdk, cell.stable_abi)
        names = torch_libraries(cuda=cell.cuda is not None, stable=cell.stable_abi is not None)
        framework = tuple(stubs / name for name in names)
        if cell.stable_abi is None:
            includes["torch"] += (Path(sysconfig.get_path("include")),)
            if cell.cuda is not None:
                includes["torch"] += cuda_headers(cache, cell.cuda, arch)
    for name in sorted(libraries):
        library = matrix.libraries[name]
        includes[name] = (wheel_files(cache, library.package, arch, [library.include]) / library.include,)
    return Toolchain(compiler, includes, system_stubs(cache, compiler, matrix.baseline), framework, cuda)


def needed_libraries(build: BuildFile, cell: Cell) -> set[str]:
    """What the cell's components depend on beside torch."""
    backend = cell.variant.backend.name
    return {name for c in build.components if c.backend == backend for name in c.depends} - {"torch"}


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
