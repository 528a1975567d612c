"""Which variants a kernel is built in, and a reason for each that is not.

`matrix.toml` says what can be built, `build.toml` what the author wants; `plan` joins the two. Pure.

    [torch] with stable-abi   one stable-ABI variant for each of the matrix's targets, and an exact one for each older
                              torch release, with what that release lacks of the ABI linked in. Exact builds for the
                              releases from that ABI on are made on request alone: the stable ones serve them all.
    [torch] without           an exact variant for each torch release: CPU, and CUDA where torch's wheel has it.
    [tvm-ffi]                 one variant for each of the matrix's targets.
    [torch-noarch]            one variant for each backend.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hub_loader.errors import UsageError
from hub_loader.variant import Backend, Framework, Platform, Variant, Version

from .build_file import BuildFile
from .capabilities import check_capabilities, cuda_capabilities
from .matrix import Cell, Matrix, TorchWheel, Unbuildable
from .noarch import noarch_variants

_COMPILED_BACKENDS = ("cpu", "cuda")


@dataclass(frozen=True)
class _Candidate:
    """A variant before the kernel's bounds are applied, and the torch release whose headers would compile it."""

    framework: Framework
    backend: Backend
    arch: str
    torch_release: str | None
    on_request: bool = False
    backfill: str | None = None


def plan(build: BuildFile, matrix: Matrix) -> tuple[list[Cell], list[Unbuildable]]:
    """The cells of one kernel, in a fixed order, and what it wants that cannot be built here.

    Raises:
        BuildConfigError: the kernel contradicts itself, or asks for what no compiler here knows.
    """
    if build.framework.kind == "torch-noarch":
        return _noarch(build, build.general.backends), []
    if build.framework.kind == "pybind11":
        from .python_cells import plan_python  # it imports the types of this module

        return plan_python(build, matrix)
    check_capabilities(build, matrix.cuda.values())
    with_component = {component.backend for component in build.components}
    cells: list[Cell] = []
    refused: list[Unbuildable] = []
    for name in build.general.backends:
        # A kernel whose sources all belong to its binding has no component at all, and needs none.
        if build.framework.kind == "torch" and with_component and name not in with_component:
            cells += (python_only := _noarch(build, [name]))
            why = f"packaged as Python only, since no [kernel.NAME] has backend = {name!r}"
            refused += [Unbuildable(str(cell), why) for cell in python_only]
            continue
        if name not in _COMPILED_BACKENDS:
            refused.append(Unbuildable(name, f"no {name} compiler can be had from PyPI or Debian packages"))
            continue
        target = (build.framework.stable_abi or {}).get(name)
        candidates = [c for c in _candidates(build, matrix, target) if c.backend.name == name]
        if not candidates:
            advice = "[torch] 'stable-abi' gives one for every torch"
            refused.append(Unbuildable(name, f"no exact {name} build is in the matrix; {advice}"))
        for candidate in candidates:
            variant = Variant(candidate.framework, candidate.backend, Platform(candidate.arch, matrix.os))
            reason = _too_old(candidate, target, matrix) or _reason_against(build, matrix, variant)
            if reason is not None:
                refused.append(Unbuildable(str(variant), reason))
                continue
            cell, problems = _cell(build, matrix, variant, candidate)
            refused += [Unbuildable(str(variant), problem) for problem in problems]
            if cell is not None:
                cells.append(cell)
    return cells, refused


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match any of the globs (`*`, `?`, `[…]`, `{a,b}`), in plan order.

    Cells on request are among them only where the glob itself names torch releases: it begins with "torch2",
    or with "torch" and a wildcard for a digit. Without globs: every cell that is not on request.

    Raises:
        UsageError: a pattern matches nothing.
    """
    if not patterns:
        return [cell for cell in cells if not cell.on_request]
    chosen = set()
    for pattern in patterns:
        matched = {str(cell) for cell in cells if any(_matches(cell, glob) for glob in expand(pattern))}
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


def compiler_version(installed: Version, compilers: Iterable[Version]) -> Version | None:
    """The CUDA to compile with for a torch that brings `installed`: the newest of its major that is not newer."""
    usable = [version for version in compilers if version[0] == installed[0] and version <= installed]
    return max(usable, default=None)


def _noarch(build: BuildFile, backends: Sequence[str]) -> list[Cell]:
    return [Cell(variant, None, capabilities=archs) for variant, archs in noarch_variants(build, backends)]


def _matches(cell: Cell, glob: str) -> bool:
    if cell.on_request and not re.match(r"torch[^-*]", glob):
        return False
    return fnmatch.fnmatchcase(str(cell), glob)


def _candidates(build: BuildFile, matrix: Matrix, target: Version | None) -> Iterator[_Candidate]:
    if build.framework.kind == "tvm-ffi":
        framework = Framework("tvm-ffi", matrix.tvm_ffi.version)
        for place in matrix.tvm_ffi.targets:
            yield _Candidate(framework, place.backend, place.arch, None)
        return
    if target is not None:
        framework = Framework("torch-stable-abi", target)
        for place in matrix.stable_targets:
            yield _Candidate(framework, place.backend, place.arch, matrix.stable_headers)
    for torch in matrix.torch:
        for wheel in torch.wheels:
            framework = Framework("torch", torch.minor, wheel.cxx11_abi)
            for backend in _backends(wheel, matrix):
                if target is not None and torch.minor < target:
                    release = matrix.stable_headers
                    yield _Candidate(framework, backend, wheel.arch, release, backfill=torch.release)
                else:
                    yield _Candidate(framework, backend, wheel.arch, torch.release, target is not None)


def _backends(wheel: TorchWheel, matrix: Matrix) -> Iterator[Backend]:
    yield Backend("cpu")
    if wheel.cuda is not None:
        version = compiler_version(wheel.cuda, matrix.cuda)
        assert version is not None  # a test asserts it of every line of the matrix
        yield Backend("cuda", version)


def _too_old(candidate: _Candidate, target: Version | None, matrix: Matrix) -> str | None:
    if target is None or candidate.backfill is None or target <= matrix.backfill:
        return None
    major, minor, *_ = candidate.backfill.split(".")
    return (
        f"the binding is written against torch's stable ABI of {target[0]}.{target[1]}, which torch {major}.{minor} "
        f"does not have; one written against that of {matrix.backfill[0]}.{matrix.backfill[1]} builds for it"
    )


def _reason_against(build: BuildFile, matrix: Matrix, variant: Variant) -> str | None:
    """Why the kernel's own bounds or dependencies rule a variant out, or None."""
    framework, backend = variant.framework, variant.backend
    if framework.name == "torch" and not _within(
        framework.version, build.framework.minver, build.framework.maxver
    ):
        return "outside build.toml's [torch] minver and maxver"
    for name in _dependencies(build, backend):
        if name not in matrix.libraries:
            return f"no PyPI package holds the headers of {name}; there are: {', '.join(matrix.libraries)}"
    general = build.general
    if backend.name == "cuda" and not _within(backend.version, general.cuda_minver, general.cuda_maxver):
        return "outside build.toml's [general.cuda] minver and maxver"
    return None


def _cell(
    build: BuildFile, matrix: Matrix, variant: Variant, candidate: _Candidate
) -> tuple[Cell | None, list[str]]:
    """The cell, None if nothing could be compiled for it, and what it is built without."""
    framework = variant.framework
    packages = tuple(matrix.libraries[name].package for name in _dependencies(build, variant.backend))
    if framework.name == "tvm-ffi":
        packages += (matrix.tvm_ffi.headers, matrix.tvm_ffi.symbols)
    cuda = None
    archs: tuple[str, ...] = ()
    problems: list[str] = []
    if variant.backend.version is not None:
        cuda = matrix.cuda[variant.backend.version]
        archs, problems = cuda_capabilities([c for c in build.components if c.backend == "cuda"], cuda)
        if not archs:
            return None, problems
    stable = framework.version if framework.name == "torch-stable-abi" else None
    if candidate.backfill is not None:
        stable = (build.framework.stable_abi or {})[variant.backend.name]
    release, backfill = candidate.torch_release, candidate.backfill
    return Cell(variant, release, stable, cuda, archs, packages, candidate.on_request, backfill), problems


def _dependencies(build: BuildFile, backend: Backend) -> list[str]:
    """What the backend's components depend on beside torch."""
    components = [c for c in build.components if c.backend == backend.name]
    return sorted({name for component in components for name in component.depends} - {"torch"})


def _within(version: Version | None, low: Version | None, high: Version | None) -> bool:
    return version is None or not ((low and version < low) or (high and version > high))
