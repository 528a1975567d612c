"""What a `build.toml` may not say at once, and what it says of its folder that is not so.

Every check names the place in the file and the cure. What depends on the compilers at hand, such as a
compute capability that none of them knows, is decided with the matrix (`capabilities.py`).
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from hub_loader.errors import BuildConfigError

from .build_file import BuildFile
from .capabilities import is_capability

# What `depends` may name, as the Hub's builder does; `matrix.toml` says which of them can be had.
DEPENDENCIES = (
    "torch",
    *(f"cutlass_{version}" for version in ("2_10", "3_5", "3_6", "3_8", "3_9", "4_0", "4_4", "4_5")),
    "sycl_tla",
    "metal-cpp",
)


def check(build: BuildFile, path: Path) -> None:
    """Check everything that needs no compiler.

    Raises:
        BuildConfigError: the first contradiction, with its place in `path` and its cure.
    """
    checks: tuple[Callable[[BuildFile], Iterator[str]], ...] = (
        _files,
        _bounds,
        _backends,
        _depends,
        _duplicates,
        _capabilities,
        _reserved_names,
    )
    for one in checks:
        for problem in one(build):
            raise BuildConfigError(f"{path}: {problem}")


def _files(build: BuildFile) -> Iterator[str]:
    named = [(src, build.framework.kind) for src in build.framework.src]
    named += [(src, f"kernel.{c.name}") for c in build.components for src in c.src]
    for src, where in named:
        if not (build.folder / src).is_file():
            yield f"[{where}] names {src!r}, which does not exist"
        if not (build.folder / src).resolve().is_relative_to(build.folder.resolve()):
            yield f"[{where}] names {src!r}, which lies outside the kernel's folder: move it inside"
    if not (build.python_sources / "__init__.py").is_file():
        missing = (build.python_sources / "__init__.py").relative_to(build.folder)
        yield f"the Python face {str(missing)!r} does not exist"


def _bounds(build: BuildFile) -> Iterator[str]:
    for where, low, high in (
        ("general.cuda", build.general.cuda_minver, build.general.cuda_maxver),
        (build.framework.kind, build.framework.minver, build.framework.maxver),
    ):
        if low is not None and high is not None and low > high:
            lowest, highest = f"{low[0]}.{low[1]}", f"{high[0]}.{high[1]}"
            yield f"[{where}] 'minver' {lowest} is above 'maxver' {highest}: no version fits; exchange them"


def _backends(build: BuildFile) -> Iterator[str]:
    backends = build.general.backends
    if not backends:
        yield "[general] 'backends' is empty: name at least one, e.g. \"cpu\""
    for backend, count in Counter(backends).items():
        if count > 1:
            yield f"[general] 'backends' names {backend!r} twice"
    for component in build.components:
        if build.framework.kind == "torch-noarch":
            yield (
                f"[kernel.{component.name}] has sources, but [torch-noarch] kernels are never compiled: "
                "use [torch], or remove it"
            )
        if component.backend not in backends:
            yield (
                f"[kernel.{component.name}] has backend = {component.backend!r}, which [general] 'backends' does not "
                "name: add it there, or remove the component"
            )


def _depends(build: BuildFile) -> Iterator[str]:
    for component in build.components:
        for name in component.depends:
            if build.framework.kind == "pybind11":
                yield (
                    f"[kernel.{component.name}] 'depends' names {name!r}, but [pybind11] kernels are built without "
                    "it: leave 'depends' empty"
                )
            if name not in DEPENDENCIES:
                yield (
                    f"[kernel.{component.name}] 'depends' names {name!r}, which is unknown: "
                    f"expected some of {', '.join(DEPENDENCIES)}"
                )


def _duplicates(build: BuildFile) -> Iterator[str]:
    """The same file twice in one backend's library would define every symbol twice."""
    for backend in build.general.backends:
        seen: dict[str, str] = {}
        named = [(src, build.framework.kind) for src in build.framework.src]
        named += [(s, f"kernel.{c.name}") for c in build.components if c.backend == backend for s in c.src]
        for src, where in named:
            path = posixpath.normpath(src)
            # Headers may be listed wherever they are used: they are not compiled by themselves.
            if path in seen and Path(path).suffix in (".c", ".cc", ".cpp", ".cu", ".cxx"):
                yield f"[{where}] compiles {src!r} for {backend!r}, and so does [{seen[path]}]: name it once"
            seen.setdefault(path, where)


def _capabilities(build: BuildFile) -> Iterator[str]:
    named = [(value, f"kernel.{c.name}") for c in build.components for value in c.cuda_capabilities]
    named += [(value, "torch-noarch") for value in build.framework.cuda_capabilities]
    for value, where in named:
        if not is_capability(value):
            yield f"[{where}] names the CUDA capability {value!r}: write e.g. '9.0', '9.0a' or '9.0+PTX'"


def _reserved_names(build: BuildFile) -> Iterator[str]:
    """Files of the Python face that the builder would overwrite."""
    for name in ("metadata.json", f"{build.general.python_name}/__init__.py"):
        if (build.python_sources / name).is_file():
            face = build.python_sources.relative_to(build.folder)
            yield f"'{face / name}' has the name of a file that the builder writes: rename it"
