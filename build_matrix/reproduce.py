"""Prove that a build is reproducible: build twice, far apart, and compare the packages byte for byte.

The two builds share the toolchain and nothing else: each has its own copy of the source in a folder of another
name and depth, its own modification times, its own working folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from hub_loader.errors import CompileError

from .build import made_of, needed_libraries, toolchain
from .build_file import BuildFile
from .build_toml import read_build_file
from .compile import compile_cell
from .matrix import Cell, Matrix
from .package import write_variant
from .provenance import kernel_id, provenance
from .toolchain.cache import ToolchainCache
from .toolchain.host import find_compiler

_PLACES = (("first", 0), ("second/deeper/down", 1_000_000_000))
"""Folder and modification time (seconds since 1970) of the two copies of the source."""


@dataclass(frozen=True)
class Comparison:
    """What two builds of a cell have in common: the number of equal files, and a sentence for each that differs."""

    cell: Cell
    equal: int
    differing: tuple[str, ...]


def reproduce(
    build: BuildFile, cells: Sequence[Cell], matrix: Matrix, cache: ToolchainCache
) -> Iterator[Comparison]:
    """Build each cell twice and compare; nothing is kept.

    Raises:
        KernelHubError: a cell does not build at all.
    """
    for cell in cells:
        scratch = Path(tempfile.mkdtemp(prefix="khub-check-"))
        try:
            left, right = (
                _build(build, cell, matrix, cache, scratch / place, mtime) for place, mtime in _PLACES
            )
            comparison = compare(cell, left, right)
        except CompileError:
            raise  # it names the log, which stays
        except BaseException:
            shutil.rmtree(scratch)
            raise
        shutil.rmtree(scratch)
        yield comparison


def compare(cell: Cell, left: Path, right: Path) -> Comparison:
    """Compare two variant folders."""
    files = [{p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in (left, right)]
    differing = [f"{path} is in one of the packages only" for path in sorted(files[0] ^ files[1])]
    both = sorted(files[0] & files[1])
    for path in both:
        if (left / path).read_bytes() != (right / path).read_bytes():
            sections = differing_sections(left / path, right / path) if path.endswith(".so") else []
            differing.append(f"{path} differs" + (f" in {', '.join(sections)}" if sections else ""))
    return Comparison(cell, len(files[0] | files[1]) - len(differing), tuple(differing))


def differing_sections(left: Path, right: Path) -> list[str]:
    """Names of the sections in which two ELF files differ; none where one of them is no ELF file."""
    try:
        first, second = _sections(left), _sections(right)
    except ELFError:
        return []
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _sections(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {section.name: section.data() for section in ELFFile(file).iter_sections() if section.name}


def _build(
    build: BuildFile, cell: Cell, matrix: Matrix, cache: ToolchainCache, place: Path, mtime: int
) -> Path:
    """Build `cell` from a copy of its source below `place`; returns the variant's folder."""
    source = place / "source"
    shutil.copytree(build.folder, source, ignore=shutil.ignore_patterns("__pycache__"))
    for path in source.rglob("*"):
        os.utime(path, (mtime, mtime))
    copy = read_build_file(source)
    name = kernel_id(copy, cell)
    library, origin = None, provenance(build.folder)
    if not cell.variant.is_noarch:
        tools = toolchain(cache, find_compiler(), matrix, cell, needed_libraries(copy, cell))
        compiled = compile_cell(copy, cell, name, tools, place / "work")
        library, origin = compiled.library, made_of(origin, tools, cache, compiled.commands)
    return write_variant(copy, cell, name, library, place / "package", origin)
