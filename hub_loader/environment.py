"""What this machine and interpreter offer to a kernel: the resolver's view of the world."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from .libc import glibc_version, musl_version
from .nvml import read_nvidia
from .record import Record
from .torch_files import Torch, leading_version, read_torch
from .variant import Version

__all__ = ["Environment", "Torch", "detect_environment"]

_ARCHS = {"amd64": "x86_64", "arm64": "aarch64"}
_INTERPRETERS = {"cpython": "cp", "pypy": "pp"}


class Environment(Record):
    """Everything a variant can depend on.

    `python` is an interpreter tag (cp311, cp313t); at most one of `glibc` and `musl` is not None, `macos` is
    the system's version there. `compute_capabilities` lists the visible NVIDIA GPUs in order, empty without a
    GPU or driver; `driver` is the NVIDIA driver's version and `driver_cuda` the newest CUDA it runs.
    """

    python: str
    arch: str
    os: str
    glibc: Version | None = None
    torch: Torch | None = None
    tvm_ffi: Version | None = None
    compute_capabilities: tuple[Version, ...] = ()
    musl: Version | None = None
    macos: Version | None = None
    driver: str | None = None
    driver_cuda: Version | None = None

    @property
    def backend(self) -> str:
        """The backend asked for by default: what torch is built for; metal on Apple's processors; else cpu."""
        if self.torch is None:
            return "cpu"
        built = self.torch.backend
        return "metal" if built == "cpu" and (self.os, self.arch) == ("darwin", "aarch64") else built


def detect_environment() -> Environment:
    """Describe the running interpreter and machine. Imports neither torch nor tvm-ffi, starts no CUDA."""
    machine, system = platform.machine().lower(), platform.system().lower()
    nvidia, glibc = read_nvidia(os.environ), glibc_version()
    return Environment(
        python=_python_tag(),
        arch=_ARCHS.get(machine, machine),
        os=system,
        glibc=glibc,
        torch=_torch(find_spec("torch")),
        tvm_ffi=_distribution_version("apache-tvm-ffi"),
        compute_capabilities=nvidia.compute_capabilities,
        musl=musl_version(Path(sys.executable)) if system == "linux" and glibc is None else None,
        macos=leading_version(platform.mac_ver()[0] + ".0") if system == "darwin" else None,
        driver=nvidia.driver,
        driver_cuda=nvidia.cuda,
    )


def _python_tag() -> str:
    name = sys.implementation.name
    free_threaded = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"{_INTERPRETERS.get(name, name)}{sys.version_info.major}{sys.version_info.minor}{free_threaded}"


def _torch(spec: ModuleSpec | None) -> Torch | None:
    return None if spec is None or spec.origin is None else read_torch(Path(spec.origin).parent)


def _distribution_version(name: str) -> Version | None:
    from importlib import metadata  # a third of what importing this package would cost

    try:
        return leading_version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None
