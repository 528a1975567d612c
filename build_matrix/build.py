"""Build one cell of one kernel: toolchains, compile, audit, package."""

from __future__ import annotations

import sysconfig
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from hub_loader.errors import CacheError, KernelHubError

from .audit import Promise
from .build_file import BuildFile
from .compile import Compiled, compile_cell
from .gates import Verdict, require, static_verdicts
from .jobs import Limits
from .load import CHECK_FILE, Loader
from .matrix import Cell, Matrix
from .package import write_variant
from .provenance import Provenance, kernel_id
from .toolchain.cache import ToolchainCache
from .toolchain.cross import compiler_for
from .toolchain.cuda import cuda_headers, cuda_toolkit
from .toolchain.host import HostCompiler, find_compiler
from .toolchain.python import python_sdk
from .toolchain.stubs import declared_shim, system_stubs, torch_libraries, torch_stubs
from .toolchain.torch_sdk import torch_sdk
from .toolchain.tvm_ffi import tvm_ffi_sdk
from .toolchain.wheel_files import wheel_files
from .units import OLDER_TORCH, Toolchain

# The architecture whose wheel the stable ABI's headers are taken from: they are equal in all of them.
STABLE_HEADERS = "x86_64"


@dataclass(frozen=True)
class Outcome:
    """What became of one cell. `error` is None when `folder` holds the variant.

    `seconds` is wall time, `size` the bytes of the variant's files; `compiled` is None when it did not come
    to a library.
    """

    cell: Cell
    seconds: float
    compiled: Compiled | None = None
    folder: Path | None = None
    size: int = 0
    verdicts: tuple[Verdict, ...] = ()
    error: KernelHubError | None = None

    @property
    def reused(self) -> bool:
        """Whether nothing had to be compiled."""
        return self.compiled is not None and self.compiled.compiled == 0

    @property
    def log(self) -> Path | None:
        """What the compilers printed, when it came to that."""
        return self.compiled.log if self.compiled is not None else getattr(self.error, "log", None)


def build_cell(
    build: BuildFile,
    cell: Cell,
    matrix: Matrix,
    out: Path,
    cache: ToolchainCache,
    origin: Provenance,
    limits: Limits | None = None,
    loader: Loader | None = None,
) -> Outcome:
    """Build `cell` into the package folder `out`; what can go wrong is in the outcome, not raised.

    `limits` bounds how many compilers run at once; the whole machine is used without it. With a `loader` the
    variant is also loaded in the torch versions its name promises before it is packaged.
    """
    begin = time.monotonic()
    compiled = None
    verdicts: list[Verdict] = []
    try:
        name = kernel_id(build, cell)
        library = None
        if not cell.variant.is_noarch:
            tools = toolchain(cache, find_compiler(), matrix, cell, needed_libraries(build, cell))
            compiled = compile_cell(build, cell, name, tools, cache.root, limits)
            library = compiled.library
            origin = made_of(origin, tools, cache, compiled.commands)
            verdicts = gate(build, cell, name, library, matrix, cache, tools, loader)
        folder = write_variant(build, cell, name, library, out, origin)
    except KernelHubError as error:
        return Outcome(cell, time.monotonic() - begin, compiled, error=error)
    except OSError as error:  # a full disk, a folder that may not be written
        wrong = CacheError(
            f"{cell}: {error}; free space, or name other folders with KHUB_TOOLCHAINS and --out"
        )
        return Outcome(cell, time.monotonic() - begin, compiled, error=wrong)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Outcome(cell, time.monotonic() - begin, compiled, folder, size, tuple(verdicts))


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
    if cell.variant.python is not None:
        assert cell.pybind11 is not None  # a cell of one interpreter has its headers' requirement
        includes["pybind11"] = python_sdk(cache, cell.variant.python, cell.pybind11).include_dirs
        framework = ()  # the interpreter itself has CPython's symbols
    elif cell.torch_release is None:
        tvm_ffi = tvm_ffi_sdk(cache, compiler, matrix.tvm_ffi, arch)
        includes["tvm-ffi"], framework = tvm_ffi.include_dirs, (tvm_ffi.library,)
    else:
        sdk = torch_sdk(cache, cell.torch_release, arch if cell.stable_abi is None else STABLE_HEADERS)
        includes["torch"] = sdk.include_dirs
        stable = cell.stable_abi is not None and cell.backfill is None
        if cell.backfill is not None:
            sdk = torch_sdk(cache, cell.backfill, arch)
            includes[OLDER_TORCH] = sdk.include_dirs
            if cuda is not None and cell.cuda is not None:
                includes[OLDER_TORCH] += (cuda.include, *cuda_headers(cache, cell.cuda, arch))
        elif not stable:
            includes["torch"] += (Path(sysconfig.get_path("include")),)
            if cell.cuda is not None:
                includes["torch"] += cuda_headers(cache, cell.cuda, arch)
        stubs = torch_stubs(cache, compiler, sdk, cell.stable_abi if stable else None)
        framework = tuple(stubs / name for name in torch_libraries(cuda=cell.cuda is not None, stable=stable))
    for name in sorted(libraries):
        library = matrix.libraries[name]
        includes[name] = (wheel_files(cache, library.package, arch, [library.include]) / library.include,)
    return Toolchain(compiler, includes, system_stubs(cache, compiler, matrix.baseline), framework, cuda)


def needed_libraries(build: BuildFile, cell: Cell) -> set[str]:
    """What the cell's components depend on beside torch."""
    backend = cell.variant.backend.name
    return {name for c in build.components if c.backend == backend for name in c.depends} - {"torch"}


def made_of(
    origin: Provenance, tools: Toolchain, cache: ToolchainCache, commands: tuple[str, ...]
) -> Provenance:
    """`origin` with the toolchain and the command lines that built a library."""
    used = [
        tools.system_stubs,
        *tools.framework,
        *(path for paths in tools.includes.values() for path in paths),
    ]
    used += [tools.cuda.root] if tools.cuda is not None else []
    toolchain = dict(cache.digest(path) for path in used if path.is_relative_to(cache.root))
    toolchain[tools.compiler.path.name] = f"{tools.compiler.version} {tools.compiler.target}"
    return replace(origin, toolchain=toolchain, commands=commands)


def gate(
    build: BuildFile,
    cell: Cell,
    name: str,
    library: Path,
    matrix: Matrix,
    cache: ToolchainCache,
    tools: Toolchain,
    loader: Loader | None,
) -> list[Verdict]:
    """Every gate's verdict on a library just built; the load gates where `loader` is given."""
    shim = None
    if cell.variant.framework.name == "torch":
        shim = declared_shim(tools.framework[0].parent, cuda=cell.cuda is not None)
    promise = Promise(cell.variant, name, matrix.baseline, cell.capabilities, shim)
    private = (build.folder, cache.root, Path.home())
    verdicts = static_verdicts(library, promise, private)
    require(f"{library.name} ({cell})", verdicts)
    if loader is not None:
        check = build.folder / CHECK_FILE
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_variant(build, cell, name, library, Path(scratch), Provenance(None, False))
            verdicts += loader.verdicts(folder, cell.variant, check if check.is_file() else None)
        require(f"{library.name} ({cell})", verdicts)
    return verdicts
