"""torch described from its files, never imported: `version.py` as text, the C++ ABI off libc10's symbols.

Importing torch costs seconds and memory that resolving does not need.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from .record import Record
from .variant import Version

# c10::SetUsageMessage(const std::string&): the mangled argument tells which std::string torch was built with.
_CXX11_SYMBOL = b"_ZN3c1015SetUsageMessageERKNSt7__cxx1112basic_string"
_CXX98_SYMBOL = b"_ZN3c1015SetUsageMessageERKSs"
# The local part of a release: 2.9.1+cu128, 2.9.1+rocm6.4, 2.9.1+xpu, 2.9.1+cpu; builders append more after a dot.
_LOCAL_CUDA = re.compile(r"cu(\d\d)(\d+)(?!\d)", re.ASCII)
_LOCAL_ROCM = re.compile(r"rocm(\d+)\.(\d+)", re.ASCII)


class Torch(Record):
    """An installed torch: `version` (major, minor), `release` as it names itself, e.g. "2.13.0+cu130".

    `cuda`, `rocm` and `xpu` are the toolkit it was built with, at most one of them not None and none for a CPU
    build; `cxx11_abi` is None where it has none.
    """

    version: Version
    release: str
    cuda: Version | None
    cxx11_abi: bool | None
    rocm: Version | None = None
    xpu: Version | None = None

    @property
    def backend(self) -> str:
        """cuda, rocm, xpu, or cpu for a build without a GPU."""
        built = (("cuda", self.cuda), ("rocm", self.rocm), ("xpu", self.xpu))
        return next((name for name, version in built if version is not None), "cpu")


def read_torch(folder: Path) -> Torch | None:
    """The torch in a package folder; None for a folder that only happens to be called torch."""
    try:
        source = (folder / "version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return parse_torch(source, _cxx11_abi(folder / "lib"))


def parse_torch(source: str, cxx11_abi: bool | None) -> Torch | None:
    """The torch that the text of a `version.py` describes; None where it names no version. Pure.

    A build that names no toolkit is what the local part of its release says: "+cu128" is CUDA 12.8.
    """
    constants = _string_constants(source)
    release = constants.get("__version__", "")
    version = leading_version(release)
    if version is None:
        return None
    cuda, rocm = leading_version(constants.get("cuda", "")), leading_version(constants.get("hip", ""))
    xpu = parse_xpu(constants.get("xpu", ""))
    if cuda is None and rocm is None and xpu is None:
        cuda, rocm = local_cuda(release), local_rocm(release)
    return Torch(version, release, cuda, cxx11_abi, rocm, xpu)


def local_cuda(release: str) -> Version | None:
    """(12, 8) of "2.9.1+cu128"; None where the local part of a release does not begin with CUDA."""
    match = _LOCAL_CUDA.match(release.partition("+")[2])
    return (int(match[1]), int(match[2])) if match else None


def local_rocm(release: str) -> Version | None:
    """(6, 4) of "2.9.1+rocm6.4"; None where the local part of a release does not begin with ROCm."""
    match = _LOCAL_ROCM.match(release.partition("+")[2])
    return (int(match[1]), int(match[2])) if match else None


def parse_xpu(text: str) -> Version | None:
    """(2025, 2) of "20250200", as torch writes the oneAPI release it was built with, and of "2025.2"."""
    match = re.match(r"(\d{4})(\d{2})\d{2}(?!\d)", text, re.ASCII)
    return (int(match[1]), int(match[2])) if match else leading_version(text)


def leading_version(text: str) -> Version | None:
    """(2, 9) of "2.9.1+cu128"; None for text that does not begin with two numbers."""
    match = re.match(r"(\d{1,9})\.(\d{1,9})(?!\d)", text, re.ASCII)
    return (int(match[1]), int(match[2])) if match else None


def _string_constants(source: str) -> dict[str, str]:
    """The module-level `name = "text"` assignments of Python source, read without running it."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # MemoryError: nested too deeply to parse
        return {}
    constants = {}
    for node in body:
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
