"""The matrix: which variants a kernel is built in, as data, and a reason for each that is not.

`matrix.toml` says what can be built, `build.toml` what the author wants; `plan` joins the two. Pure, but for
[pybind11] kernels: which interpreters' headers are on this machine is looked up.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_loader.errors import UsageError
from hub_loader.variant import Backend, Framework, Platform, Variant, parse_backend

from .build_toml import BuildFile
from .capabilities import check_capabilities, cuda_capabilities
from .contradictions import COMPILED_BACKENDS, check_components
from .noarch import noarch_variants

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MATRIX_FILE = Path(__file__).with_name("matrix.toml")


@dataclass(frozen=True)
class Baseline:
    """The oldest system that binaries must load on: highest symbol version allowed of each family."""

    glibc: tuple[int, ...]
    glibcxx: tuple[int, ...]
    cxxabi: tuple[int, ...]
    gcc: tuple[int, ...]


@dataclass(frozen=True)
class CudaRelease:
    """A CUDA compiler from PyPI: pinned requirements, and its compute capabilities.

    `headers` are requirements of which only the headers are wanted; `capabilities` are compiled unless a
    kernel names its own, of which those not `supported` are left out.
    """

    version: tuple[int, int]
    packages: tuple[str, ...]
    headers: tuple[str, ...]
    supported: tuple[str, ...]
    capabilities: tuple[str, ...]


@dataclass(frozen=True)
class TorchRelease:
    """A torch release that exact builds are made for."""

    release: str
    cxx11_abi: bool
    backends: tuple[Backend, ...]

    @property
    def minor(self) -> tuple[int, int]:
        major, minor, *_ = self.release.split(".")
        return int(major), int(minor)


@dataclass(frozen=True)
class TvmFfiRelease:
    """A series of tvm-ffi: requirements for its newest headers and for the library with its oldest symbols."""

    version: tuple[int, int]
    headers: str
    symbols: str
    backends: tuple[Backend, ...]


@dataclass(frozen=True)
class HeaderLibrary:
    """What a component's `depends` names: a requirement, and the folder inside it to include from."""

    package: str
    include: str


@dataclass(frozen=True)
class Pybind11:
    """The interpreters (cp311, …) that pybind11 bindings are built for, and the pinned requirement of its headers."""

    package: str
    pythons: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """`matrix.toml`, parsed."""

    torch: tuple[TorchRelease, ...]
    stable_headers: str
    stable_backends: tuple[Backend, ...]
    tvm_ffi: TvmFfiRelease
    libraries: Mapping[str, HeaderLibrary]
    pybind11: Pybind11
    cuda: Mapping[tuple[int, int], CudaRelease]
    platform: Platform
    baseline: Baseline


@dataclass(frozen=True)
class Cell:
    """One variant to build: the torch whose headers compile it and, for CUDA, the compiler and archs.

    `torch_release` is None where torch is not compiled against; `stable_abi` is the oldest torch (major,
    minor) targeted, None for an exact build. `packages` are the requirements it needs beside those. For one
    interpreter, `python_release` is the CPython whose headers compile the binding, e.g. "3.11.7", and `pybind11`
    the requirement of the other ones.
    """

    variant: Variant
    torch_release: str | None
    stable_abi: tuple[int, int] | None = None
    cuda: CudaRelease | None = None
    capabilities: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    python_release: str | None = None
    pybind11: str | None = None

    def __str__(self) -> str:
        return str(self.variant)


@dataclass(frozen=True)
class Unbuildable:
    """A variant the author asked for that this matrix cannot build, and why."""

    name: str
    reason: str


def read_matrix(path: Path = MATRIX_FILE) -> Matrix:
    """Read the matrix. It ships with the package, so a malformed one is a defect, not an input error."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    cuda = {}
    for version, table in data["cuda"].items():
        lists = (tuple(table[key]) for key in ("packages", "headers", "supported", "capabilities"))
        cuda[_pair(version)] = CudaRelease(_pair(version), *lists)
    tvm_ffi: dict[str, Any] = data["tvm-ffi"]
    platform: dict[str, Any] = data["platform"]
    return Matrix(
        torch=tuple(
            TorchRelease(t["release"], t["cxx11-abi"], tuple(parse_backend(b) for b in t["backends"]))
            for t in data["torch"]
        ),
        stable_headers=data["stable-abi"]["headers"],
        stable_backends=tuple(parse_backend(b) for b in data["stable-abi"]["backends"]),
        tvm_ffi=TvmFfiRelease(
            _pair(tvm_ffi["version"]),
            tvm_ffi["headers"],
            tvm_ffi["symbols"],
            tuple(parse_backend(b) for b in tvm_ffi["backends"]),
        ),
        libraries={name: HeaderLibrary(**table) for name, table in data["libraries"].items()},
        pybind11=Pybind11(data["pybind11"]["package"], tuple(data["pybind11"]["pythons"])),
        cuda=cuda,
        platform=Platform(platform["arch"], platform["os"]),
        baseline=Baseline(*(_numbers(platform[key]) for key in ("glibc", "glibcxx", "cxxabi", "gcc"))),
    )


def plan(build: BuildFile, matrix: Matrix) -> tuple[list[Cell], list[Unbuildable]]:
    """The cells of one kernel, in a fixed order, and what it wants that cannot be built here.

    Raises:
        BuildConfigError: the kernel contradicts itself, or asks for what no compiler here knows.
    """
    if build.framework.kind == "torch-noarch":
        return [Cell(variant, None, None, None, archs) for variant, archs in noarch_variants(build)], []
    if build.framework.kind == "pybind11":
        from .python_cells import plan_python  # it imports the types above

        return plan_python(build, matrix)
    check_capabilities(build, matrix.cuda.values())
    check_components(build)
    cells: list[Cell] = []
    refused: list[Unbuildable] = []
    for name in build.general.backends:
        if name not in COMPILED_BACKENDS:
            refused.append(Unbuildable(name, f"no {name} compiler can be had from PyPI or Debian packages"))
            continue
        targets = [target for target in _targets(build, matrix, name) if target[1].name == name]
        for framework, backend, torch_release in targets:
            _add(cells, refused, build, matrix, framework, backend, torch_release)
        if not targets:
            reason = f"no exact {name} build is in the matrix; [torch] 'stable-abi' gives one for every torch"
            refused.append(Unbuildable(name, reason))
    return cells, refused


def _targets(build: BuildFile, matrix: Matrix, name: str) -> Iterator[tuple[Framework, Backend, str | None]]:
    """What to bind to, where, and the torch release whose headers do it, for the backend called `name`."""
    if build.framework.kind == "tvm-ffi":
        for backend in matrix.tvm_ffi.backends:
            yield Framework("tvm-ffi", matrix.tvm_ffi.version), backend, None
        return
    target = (build.framework.stable_abi or {}).get(name)
    if target is not None:
        for backend in matrix.stable_backends:
            yield Framework("torch-stable-abi", target), backend, matrix.stable_headers
    for torch in matrix.torch:
        for backend in torch.backends:
            yield Framework("torch", torch.minor, torch.cxx11_abi), backend, torch.release


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match any of the globs (`*`, `?`, `[…]`, `{a,b}`), in plan order; all without one.

    Raises:
        UsageError: a pattern matches nothing.
    """
    if not patterns:
        return list(cells)
    chosen = set()
    for pattern in patterns:
        matched = {str(c) for c in cells if any(fnmatch.fnmatchcase(str(c), p) for p in expand(pattern))}
        if not matched:
            names = ", ".join(str(cell) for cell in cells) or "none"
            raise UsageError(f"--select {pattern!r} matches no cell; the cells are: {names}")
        chosen |= matched
    return [cell for cell in cells if str(cell) in chosen]


def expand(pattern: str) -> list[str]:
    """Expand shell braces: `torch2{7,8}-*` gives `torch27-*` and `torch28-*`."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [full for part in match[1].split(",") for full in expand(head + part + tail)]


def _add(
    cells: list[Cell],
    refused: list[Unbuildable],
    build: BuildFile,
    matrix: Matrix,
    framework: Framework,
    backend: Backend,
    torch_release: str | None,
) -> None:
    variant = Variant(framework, backend, matrix.platform)
    low, high = build.framework.minver, build.framework.maxver
    version = framework.version if framework.name == "torch" else None
    if version is not None and ((low and version < low) or (high and version > high)):
        refused.append(Unbuildable(str(variant), "outside build.toml's [torch] minver and maxver"))
        return
    components = [c for c in build.components if c.backend == backend.name]
    wanted = {name for component in components for name in component.depends} - {"torch"}
    for name in sorted(wanted - matrix.libraries.keys()):
        reason = f"no PyPI package holds the headers of {name}; there are: {', '.join(matrix.libraries)}"
        refused.append(Unbuildable(str(variant), reason))
        return
    packages = tuple(matrix.libraries[name].package for name in sorted(wanted))
    if framework.name == "tvm-ffi":
        packages += (matrix.tvm_ffi.headers, matrix.tvm_ffi.symbols)
    if backend.name != "cuda":
        cells.append(Cell(variant, torch_release, _stable(framework), None, (), packages))
        return
    assert backend.version is not None  # cuda backends are versioned by the grammar
    low, high = build.general.cuda_minver, build.general.cuda_maxver
    if (low and backend.version < low) or (high and backend.version > high):
        refused.append(Unbuildable(str(variant), "outside build.toml's [general.cuda] minver and maxver"))
        return
    cuda = matrix.cuda[backend.version]
    archs, problems = cuda_capabilities(components, cuda)
    refused += [Unbuildable(str(variant), problem) for problem in problems]
    if archs:
        cells.append(Cell(variant, torch_release, _stable(framework), cuda, archs, packages))


def _stable(framework: Framework) -> tuple[int, int] | None:
    return framework.version if framework.name == "torch-stable-abi" else None


def _pair(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
