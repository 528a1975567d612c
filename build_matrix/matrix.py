"""The matrix: which variants a kernel is built in, as data, and a reason for each that is not.

`matrix.toml` says what can be built, `build.toml` what the author wants; `plan` joins the two. Pure, but for
[pybind11] kernels: which interpreters' headers are on this machine is looked up.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_loader.errors import UsageError
from hub_loader.variant import Backend, Framework, Platform, Variant, parse_backend

from .build_toml import BuildFile

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
    """A CUDA compiler from PyPI: pinned requirements and the default compute capabilities."""

    version: tuple[int, int]
    packages: tuple[str, ...]
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
    pybind11: Pybind11
    cuda: Mapping[tuple[int, int], CudaRelease]
    platform: Platform
    baseline: Baseline


@dataclass(frozen=True)
class Cell:
    """One variant to build: the torch whose headers compile it and, for CUDA, the compiler and archs.

    `stable_abi` is the oldest torch (major, minor) targeted, None for an exact build. Without torch,
    `torch_release` is None, `python_release` the CPython whose headers compile the binding, e.g. "3.11.7", and
    `pybind11` the requirement of the other ones.
    """

    variant: Variant
    torch_release: str | None
    stable_abi: tuple[int, int] | None = None
    cuda: CudaRelease | None = None
    capabilities: tuple[str, ...] = ()
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
        release = CudaRelease(_pair(version), tuple(table["packages"]), tuple(table["capabilities"]))
        cuda[release.version] = release
    platform: dict[str, Any] = data["platform"]
    return Matrix(
        torch=tuple(
            TorchRelease(t["release"], t["cxx11-abi"], tuple(parse_backend(b) for b in t["backends"]))
            for t in data["torch"]
        ),
        stable_headers=data["stable-abi"]["headers"],
        stable_backends=tuple(parse_backend(b) for b in data["stable-abi"]["backends"]),
        pybind11=Pybind11(data["pybind11"]["package"], tuple(data["pybind11"]["pythons"])),
        cuda=cuda,
        platform=Platform(platform["arch"], platform["os"]),
        baseline=Baseline(*(_numbers(platform[key]) for key in ("glibc", "glibcxx", "cxxabi", "gcc"))),
    )


def plan(build: BuildFile, matrix: Matrix) -> tuple[list[Cell], list[Unbuildable]]:
    """The cells of one kernel, in a fixed order, and what it wants that cannot be built here."""
    if build.framework.kind == "pybind11":
        from .python_cells import plan_python  # it imports the types above

        return plan_python(build, matrix)
    if build.framework.kind != "torch":
        reason = f"[{build.framework.kind}] kernels are not built by this version; use [torch]"
        return [], [Unbuildable(build.framework.kind, reason)]
    cells: list[Cell] = []
    refused: list[Unbuildable] = []
    for name in build.general.backends:
        if name not in ("cpu", "cuda"):
            refused.append(Unbuildable(name, f"no {name} compiler can be had from PyPI or Debian packages"))
            continue
        target = (build.framework.stable_abi or {}).get(name)
        if target is not None:
            framework = Framework("torch-stable-abi", target)
            for backend in matrix.stable_backends:
                if backend.name == name:
                    _add(cells, refused, build, matrix, framework, backend, matrix.stable_headers)
        for torch in matrix.torch:
            framework = Framework("torch", torch.minor, torch.cxx11_abi)
            for backend in torch.backends:
                if backend.name == name:
                    _add(cells, refused, build, matrix, framework, backend, torch.release)
    return cells, refused


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
    torch_release: str,
) -> None:
    variant = Variant(framework, backend, matrix.platform)
    torch_minor = _pair(".".join(torch_release.split(".")[:2]))
    low, high = build.framework.minver, build.framework.maxver
    if framework.name == "torch" and ((low and torch_minor < low) or (high and torch_minor > high)):
        refused.append(Unbuildable(str(variant), "outside build.toml's [torch] minver and maxver"))
        return
    if backend.name != "cuda":
        cells.append(Cell(variant, torch_release, _stable(framework), None, ()))
        return
    assert backend.version is not None  # cuda backends are versioned by the grammar
    low, high = build.general.cuda_minver, build.general.cuda_maxver
    if (low and backend.version < low) or (high and backend.version > high):
        refused.append(Unbuildable(str(variant), "outside build.toml's [general.cuda] minver and maxver"))
        return
    cuda = matrix.cuda[backend.version]
    named = {a for c in build.components if c.backend == "cuda" for a in c.cuda_capabilities}
    archs = tuple(sorted(named or cuda.capabilities, key=capability_key))
    cells.append(Cell(variant, torch_release, _stable(framework), cuda, archs))


def capability_key(capability: str) -> tuple[int, int, str]:
    """Sort key of a compute capability such as "9.0a" or "12.0+PTX"."""
    match = re.match(r"(\d+)\.(\d+)(.*)", capability)
    if match is None:
        raise UsageError(f"compute capability {capability!r} must look like '9.0', '9.0a' or '9.0+PTX'")
    return int(match[1]), int(match[2]), match[3]


def _stable(framework: Framework) -> tuple[int, int] | None:
    return framework.version if framework.name == "torch-stable-abi" else None


def _pair(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
