"""Build the selected cells of one kernel: toolchains, compile, audit, package, index."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hub_loader.errors import KernelHubError

from .audit import Promise
from .build_toml import BuildFile
from .compile import Toolchain, command_lines, compile_cell
from .gates import Verdict, require, static_verdicts
from .load import CHECK_FILE, Loader
from .matrix import Cell, Matrix
from .package import write_index, write_variant
from .provenance import Provenance, kernel_id, provenance
from .toolchain.cache import ToolchainCache
from .toolchain.cuda import cuda_toolkit
from .toolchain.host import HostCompiler, find_compiler
from .toolchain.stubs import system_stubs, torch_stubs
from .toolchain.torch_sdk import torch_sdk


@dataclass(frozen=True)
class Outcome:
    """What became of one cell. `error` is None when `folder` holds the variant; `seconds` is wall time."""

    cell: Cell
    seconds: float
    reused: bool = False
    folder: Path | None = None
    verdicts: tuple[Verdict, ...] = ()
    error: KernelHubError | None = None


def build_cells(
    build: BuildFile,
    cells: Sequence[Cell],
    matrix: Matrix,
    out: Path,
    cache: ToolchainCache,
    started: Callable[[Cell], None] = lambda cell: None,
    loader: Loader | None = None,
) -> Iterator[Outcome]:
    """Build `cells` into the package folder `out`, one outcome each; a failed cell stops no other. With a
    `loader`, each is also loaded in the torch versions its name promises before it is packaged.

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
            reused = (work / f"{name}.abi3.so").is_file()
            tools = toolchain(cache, compiler, matrix, cell)
            library = compile_cell(build, cell, name, tools, work)
            verdicts = gate(build, cell, name, library, matrix, cache, loader)
            folder = write_variant(
                build, cell, name, library, out, made_of(origin, build, tools, cache, work)
            )
        except KernelHubError as error:
            yield Outcome(cell, time.monotonic() - begin, error=error)
            continue
        succeeded = True
        yield Outcome(cell, time.monotonic() - begin, reused, folder, tuple(verdicts))
    if succeeded:
        write_index(out)


def toolchain(cache: ToolchainCache, compiler: HostCompiler, matrix: Matrix, cell: Cell) -> Toolchain:
    """Everything `cell` is compiled with, fetched or derived on first use."""
    sdk = torch_sdk(cache, cell.torch_release, matrix.platform.arch)
    return Toolchain(
        compiler=compiler,
        sdk=sdk,
        system_stubs=system_stubs(cache, compiler, matrix.baseline),
        torch_stubs=torch_stubs(cache, compiler, sdk, cell.stable_abi),
        cuda=None if cell.cuda is None else cuda_toolkit(cache, cell.cuda),
    )


def made_of(
    origin: Provenance, build: BuildFile, tools: Toolchain, cache: ToolchainCache, work: Path
) -> Provenance:
    """`origin` with the toolchain and the command lines that built what lies in `work`."""
    parts = [
        tools.sdk.root,
        tools.system_stubs,
        tools.torch_stubs,
        *([tools.cuda.root] if tools.cuda else []),
    ]
    toolchain = dict(cache.digest(part) for part in parts)
    toolchain[tools.compiler.path.name] = f"{tools.compiler.version} {tools.compiler.target}"
    return replace(origin, toolchain=toolchain, commands=command_lines(build, tools, work))


def gate(
    build: BuildFile,
    cell: Cell,
    name: str,
    library: Path,
    matrix: Matrix,
    cache: ToolchainCache,
    loader: Loader | None,
) -> list[Verdict]:
    """Every gate's verdict on a library just built; the load gates where `loader` is given."""
    promise = Promise(cell.variant, name, matrix.baseline, cell.capabilities)
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
