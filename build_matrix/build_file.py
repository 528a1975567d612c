"""What a `build.toml` says, read: frozen dataclasses. `build_toml.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_loader.manifest import python_name

# Where the Python face of each kind lies; [torch-noarch] shares the folder of [torch].
_FACE_FOLDERS = {"tvm-ffi": "tvm-ffi-ext", "pybind11": "pybind11-ext"}


@dataclass(frozen=True)
class Depends:
    """What a kernel needs on the user's machine: Python requirements, and kernels as `metadata.json` names them."""

    python: tuple[str, ...] = ()
    kernels: tuple[Any, ...] = ()


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
    backend_depends: Mapping[str, Depends] = field(default_factory=dict)

    @property
    def python_name(self) -> str:
        return python_name(self.name)

    def depends_of(self, backend: str) -> Depends:
        """What every variant of `backend` needs at run time: the kernel's own needs, then the backend's."""
        own = self.backend_depends.get(backend, Depends())
        return Depends(self.python_depends + own.python, self.kernel_depends + own.kernels)


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
    rocm_archs: tuple[str, ...] = ()


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
