"""What this machine and interpreter offer to a kernel: the resolver's view of the world.

torch is described from its files and never imported: `torch/version.py` is parsed as text, and the C++ ABI
is read off the symbols of `libc10`. Importing torch costs seconds and memory that resolving does not need.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import sys
import sysconfig
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from .nvml import visible_compute_capabilities
from .variant import Version

_ARCHS = {"amd64": "x86_64", "arm64": "aarch64"}

# c10::SetUsageMessage(const std::string&): the mangled argument tells which std::string torch was built with.
_CXX11_SYMBOL = b"_ZN3c1015SetUsageMessageERKNSt7__cxx1112basic_string"
_CXX98_SYMBOL = b"_ZN3c1015SetUsageMessageERKSs"


@dataclass(frozen=True)
class Torch:
    """An installed torch: `version` (major, minor), `release` as it names itself, e.g. "2.13.0+cu130".

    `cuda` is the toolkit it was built with, None for a CPU build; `cxx11_abi` is None where it has none.
    """

    version: Version
    release: str
    cuda: Version | None
    cxx11_abi: bool | None


@dataclass(frozen=True)
class Environment:
    """Everything a variant can depend on.

    `python` is an interpreter tag (cp311, cp313t); `glibc` is None where the C library is another one;
    `compute_capabilities` lists the visible NVIDIA GPUs in order, empty without a GPU or driver.
    """

    python: str
    arch: str
    os: str
    glibc: Version | None = None
    torch: Torch | None = None
    tvm_ffi: Version | None = None
    compute_capabilities: tuple[Version, ...] = ()

    @property
    def backend(self) -> str:
        """The backend asked for by default: cuda for a torch built for CUDA, else cpu."""
        return "cuda" if self.torch is not None and self.torch.cuda is not None else "cpu"


def detect_environment() -> Environment:
    """Describe the running interpreter and machine. Imports neither torch nor tvm-ffi, starts no CUDA."""
    machine = platform.machine().lower()
    free_threaded = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return Environment(
        python=f"cp{sys.version_info.major}{sys.version_info.minor}{free_threaded}",
        arch=_ARCHS.get(machine, machine),
        os=platform.system().lower(),
        glibc=_glibc(),
        torch=_torch(find_spec("torch")),
        tvm_ffi=_distribution_version("apache-tvm-ffi"),
        compute_capabilities=visible_compute_capabilities(os.environ),
    )


def _glibc() -> Version | None:
    try:
        reported = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # musl, macOS
        return None
    return _leading_version((reported or "").removeprefix("glibc "))


def _torch(spec: ModuleSpec | None) -> Torch | None:
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        constants = _string_constants((folder / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None  # a folder that happens to be called torch
    release = constants.get("__version__") or ""
    version = _leading_version(release)
    if version is None:
        return None
    return Torch(version, release, _leading_version(constants.get("cuda") or ""), _cxx11_abi(folder / "lib"))


def _string_constants(source: str) -> dict[str, str]:
    """The module-level `name = "text"` assignments of Python source, read without running it."""
    constants = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets: list[ast.expr] = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            constants.update({t.id: node.value.value for t in targets if isinstance(t, ast.Name)})
    return constants


def _cxx11_abi(lib: Path) -> bool | None:
    try:
        symbols = (lib / "libc10.so").read_bytes()
    except OSError:
        return None
    if _CXX11_SYMBOL in symbols:
        return True
    return False if _CXX98_SYMBOL in symbols else None


def _distribution_version(name: str) -> Version | None:
    from importlib import metadata  # a third of what importing this package would cost

    try:
        return _leading_version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return None


def _leading_version(text: str) -> Version | None:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None
