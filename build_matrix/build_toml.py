"""Read `build.toml`: the Hub's own source format, edition 5, into frozen dataclasses.

Every key is known here or refused by name, so a misspelt option never silently does nothing. The schema
is that of the Hub's kernel-builder, edition 5; `path` members are relative to the kernel's folder. One table
is ours and no other builder knows it: `[pybind11]` (src, include, cxx-flags, pyext), a binding to CPython's own
ABI, built once for each interpreter and without torch.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_loader.errors import BuildConfigError, InvalidKernelError
from hub_loader.manifest import check_kernel_name, python_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILD_FILE = "build.toml"
EDITION = 5
BACKENDS = ("cann", "cpu", "cuda", "metal", "neuron", "rocm", "tpu", "xpu")
_FRAMEWORKS = ("torch", "torch-noarch", "tvm-ffi", "pybind11")
# Where the Python face of each kind lies; [torch-noarch] shares the folder of [torch].
_FACE_FOLDERS = {"tvm-ffi": "tvm-ffi-ext", "pybind11": "pybind11-ext"}


@dataclass(frozen=True)
class General:
    """`[general]`: who the kernel is. Versions of CUDA are (major, minor) bounds, inclusive."""

    name: str
    version: int
    license: str
    backends: tuple[str, ...]
    upstream: str | None = None
    source: str | None = None
    repo_id: str | None = None
    branch: str | None = None
    python_depends: tuple[str, ...] = ()
    kernel_depends: tuple[Any, ...] = ()
    cuda_minver: tuple[int, int] | None = None
    cuda_maxver: tuple[int, int] | None = None
    cuda_python_depends: tuple[str, ...] = ()

    @property
    def python_name(self) -> str:
        return python_name(self.name)


@dataclass(frozen=True)
class Framework:
    """`[torch]`, `[torch-noarch]`, `[tvm-ffi]` or `[pybind11]`: the binding and how its Python part is packed.

    `stable_abi` maps a backend to the oldest torch (major, minor) whose stable ABI the binding needs.
    """

    kind: str
    src: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    pyext: tuple[str, ...] = ("py", "pyi")
    cxx_flags: tuple[str, ...] = ()
    minver: tuple[int, int] | None = None
    maxver: tuple[int, int] | None = None
    stable_abi: Mapping[str, tuple[int, int]] | None = None
    cuda_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Component:
    """A `[kernel.NAME]`: sources of one backend, compiled with their own flags."""

    name: str
    backend: str
    src: tuple[str, ...]
    depends: tuple[Any, ...]
    include: tuple[str, ...] = ()
    cxx_flags: tuple[str, ...] = ()
    cuda_flags: tuple[str, ...] = ()
    cuda_capabilities: tuple[str, ...] = ()
    cuda_minver: tuple[int, int] | None = None


@dataclass(frozen=True)
class BuildFile:
    """A whole `build.toml` and the folder it lies in."""

    folder: Path
    general: General
    framework: Framework
    components: tuple[Component, ...]

    @property
    def python_sources(self) -> Path:
        """The folder of the kernel's Python face, e.g. `torch-ext/<name>`."""
        return self.folder / _FACE_FOLDERS.get(self.framework.kind, "torch-ext") / self.general.python_name


def read_build_file(folder: Path) -> BuildFile:
    """Read `folder/build.toml` and check that the files it names exist.

    Raises:
        BuildConfigError: no such file, TOML syntax, another edition, an unknown or missing key, a missing source.
    """
    path = folder / BUILD_FILE
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildConfigError(f"{path} does not exist: name a folder that holds a {BUILD_FILE}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BuildConfigError(f"{path}: {error}") from None
    build = _build(_Table(data, str(path), ""), folder)
    _check_sources(build, path)
    return build


class _Table:
    """A TOML table that knows where it is, hands out typed values, and refuses what nobody took."""

    def __init__(self, data: Mapping[str, Any], path: str, where: str) -> None:
        self._data = dict(data)
        self._known: list[str] = []
        self._path = path
        self._where = where

    def fail(self, message: str) -> BuildConfigError:
        where = f"[{self._where}] " if self._where else ""
        return BuildConfigError(f"{self._path}: {where}{message}")

    def take(self, key: str, kind: type, default: Any = None, required: bool = False) -> Any:
        self._known.append(key)
        if key not in self._data:
            if required:
                misspelt = difflib.get_close_matches(key, self._data, n=1)
                if misspelt:
                    raise self.fail(f"unknown key {misspelt[0]!r}; did you mean {key!r}?")
                raise self.fail(f"the key {key!r} is missing")
            return default
        value = self._data.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(f"{key!r} must be of type {kind.__name__}, not {type(value).__name__}")
        return value

    def strings(self, key: str, required: bool = False, default: Sequence[str] = ()) -> tuple[str, ...]:
        values = self.take(key, list, list(default), required)
        if not all(isinstance(value, str) for value in values):
            raise self.fail(f"{key!r} must be a list of strings")
        return tuple(values)

    def version(self, key: str) -> tuple[int, int] | None:
        value = self.take(key, str)
        return None if value is None else self.parse_version(key, value)

    def parse_version(self, key: str, value: str) -> tuple[int, int]:
        parts = value.split(".")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise self.fail(f"{key!r} must look like '2.10', not {value!r}")
        return int(parts[0]), int(parts[1])

    def table(self, key: str) -> _Table | None:
        value = self.take(key, dict)
        if value is None:
            return None
        return _Table(value, self._path, f"{self._where}.{key}" if self._where else key)

    def items(self) -> list[str]:
        return list(self._data)

    def finish(self) -> None:
        for key in self._data:
            close = difflib.get_close_matches(key, self._known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(self._known))}"
            raise self.fail(f"unknown key {key!r}; {hint}")


def _build(root: _Table, folder: Path) -> BuildFile:
    general_table = root.table("general")
    if general_table is None:
        raise root.fail("the table [general] is missing")
    general = _general(general_table)
    tables = {kind: root.table(kind) for kind in _FRAMEWORKS}
    present = [(kind, table) for kind, table in tables.items() if table is not None]
    if len(present) != 1:
        raise root.fail(f"exactly one of {', '.join(f'[{kind}]' for kind in _FRAMEWORKS)} is needed")
    framework = _framework(*present[0])
    kernels = root.table("kernel")
    components = []
    if kernels is not None:
        for name in kernels.items():
            table = kernels.table(name)
            assert table is not None  # `items` listed it
            components.append(_component(name, table))
    root.finish()
    return BuildFile(folder, general, framework, tuple(components))


def _general(table: _Table) -> General:
    edition = table.take("edition", int, required=True)
    if edition != EDITION:
        raise table.fail(f"edition {edition} is not supported, only {EDITION}: migrate the file")
    name = table.take("name", str, required=True)
    try:
        check_kernel_name(name)
    except InvalidKernelError as error:
        raise table.fail(str(error)) from None
    backends = table.strings("backends", required=True)
    for backend in backends:
        if backend not in BACKENDS:
            raise table.fail(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    hub = table.table("hub")
    repo_id, branch = (hub.take("repo-id", str), hub.take("branch", str)) if hub else (None, None)
    cuda = table.table("cuda")
    minver = maxver = None
    cuda_python: tuple[str, ...] = ()
    if cuda:
        minver, maxver = cuda.version("minver"), cuda.version("maxver")
        cuda_python = cuda.strings("python-depends")
        cuda.take("kernel-depends", list)
        cuda.finish()
    if hub:
        hub.finish()
    for other in ("neuron", "tpu", "xpu"):
        table.take(other, dict)  # settings of backends that are not built here
    general = General(
        name=name,
        version=table.take("version", int, required=True),
        license=table.take("license", str, required=True),
        backends=backends,
        upstream=table.take("upstream", str),
        source=table.take("source", str),
        repo_id=repo_id,
        branch=branch,
        python_depends=table.strings("python-depends"),
        kernel_depends=tuple(table.take("kernel-depends", list, [])),
        cuda_minver=minver,
        cuda_maxver=maxver,
        cuda_python_depends=cuda_python,
    )
    table.finish()
    return general


def _framework(kind: str, table: _Table) -> Framework:
    pyext = table.strings("pyext", default=("py", "pyi"))
    if kind == "torch-noarch":
        capabilities = table.strings("cuda_capabilities")
        table.strings("rocm_archs")
        framework = Framework(kind, pyext=pyext, cuda_capabilities=capabilities)
    else:
        framework = Framework(
            kind,
            src=table.strings("src", required=kind in ("tvm-ffi", "pybind11")),
            include=table.strings("include"),
            pyext=pyext,
            cxx_flags=table.strings("cxx-flags"),
            minver=table.version("minver") if kind == "torch" else None,
            maxver=table.version("maxver") if kind == "torch" else None,
            stable_abi=_stable_abi(table) if kind == "torch" else None,
        )
    table.finish()
    return framework


def _stable_abi(table: _Table) -> Mapping[str, tuple[int, int]] | None:
    """One version for every backend, or a version for each."""
    value = table.take("stable-abi", object)
    if value is None:
        return None
    if isinstance(value, str):
        return dict.fromkeys(BACKENDS, table.parse_version("stable-abi", value))
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise table.fail("'stable-abi' must be a version such as '2.10', or a table of backend = version")
    for backend in value:
        if backend not in BACKENDS:
            raise table.fail(f"'stable-abi' names the unknown backend {backend!r}")
    return {backend: table.parse_version("stable-abi", version) for backend, version in value.items()}


def _component(name: str, table: _Table) -> Component:
    backend = table.take("backend", str, required=True)
    if backend not in BACKENDS:
        raise table.fail(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    cuda = backend == "cuda"
    component = Component(
        name=name,
        backend=backend,
        src=table.strings("src", required=True),
        depends=tuple(table.take("depends", list, required=True)),
        include=table.strings("include"),
        cxx_flags=table.strings("cxx-flags"),
        cuda_flags=table.strings("cuda-flags") if cuda else (),
        cuda_capabilities=table.strings("cuda-capabilities") if cuda else (),
        cuda_minver=table.version("cuda-minver") if cuda else None,
    )
    for key in {"rocm": ("rocm-archs", "hip-flags"), "xpu": ("sycl-flags",)}.get(backend, ()):
        table.strings(key)
    table.finish()
    return component


def _check_sources(build: BuildFile, path: Path) -> None:
    named = [(src, build.framework.kind) for src in build.framework.src]
    named += [(src, f"kernel.{c.name}") for c in build.components for src in c.src]
    for src, where in named:
        if not (build.folder / src).is_file():
            raise BuildConfigError(f"{path}: [{where}] names {src!r}, which does not exist")
    if not (build.python_sources / "__init__.py").is_file():
        missing = (build.python_sources / "__init__.py").relative_to(build.folder)
        raise BuildConfigError(f"{path}: the Python face {str(missing)!r} does not exist")
