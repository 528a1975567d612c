"""Check a built library against what its variant's name promises, from the ELF file itself.

A stripped file has no `.symtab`, so only `.dynsym`, its version records and DT_NEEDED are read: that is
what the loader on a user's machine will read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from hub_loader.errors import AuditError
from hub_loader.variant import Variant

from .capabilities import capability_key
from .matrix import Baseline
from .toolchain.stubs import allowed_version

_SYSTEM_LIBRARIES = re.compile(r"lib(c|m|pthread|dl|rt|gcc_s|stdc\+\+)\.so\.\d+|ld-linux-[\w-]+\.so\.\d")
_TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libc10.so")
_TORCH_CUDA_LIBRARIES = ("libtorch_cuda.so", "libc10_cuda.so")
_CUDA_LIBRARIES = re.compile(r"lib(cudart|cublas|cublasLt|nvrtc)\.so\.(\d+)")
_TVM_FFI_LIBRARIES = ("libtvm_ffi.so",)
_TVM_FFI_EXPORT = re.compile(r"__tvm_ffi_\w+")
# Mangled names of functions, objects, type data and thread-local accessors in torch's namespaces.
_TORCH_CXX = re.compile(r"_Z(T[VTISHW]|GV)?N[rVK]*[RO]?(2at|3c10|5torch|6caffe2)\w+")
_C_SHIM = re.compile(r"(aoti_)?torch_\w+")
_PYTHON_SYMBOLS = frozenset(
    line
    for line in Path(__file__).with_name("python_stable_abi.txt").read_text().splitlines()
    if not line.startswith("#")
)
_WEAK_RUNTIME = (
    "__gmon_start__",
    "_ITM_deregisterTMCloneTable",
    "_ITM_registerTMCloneTable",
    "__cxa_finalize",
)
_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
# An entry of `.dynsym` in a 64-bit little-endian file, and what its fields may say.
_SYMBOL = struct.Struct("<IBBHQQ")
_SECTION_SYMBOL, _UNVERSIONED = 3, 1
_FATBIN_MAGIC = 0xBA55ED50
_FATBIN_PTX, _FATBIN_ELF = 1, 2
_FATBIN_ARCH_ONLY, _FATBIN_FAMILY = 1 << 20, 1 << 21  # code for "9.0a", "10.0f"


@dataclass(frozen=True)
class Library:
    """What a shared library says of itself.

    `versions` are (library, symbol version) pairs it requires; `capabilities` the compute capabilities
    compiled in, e.g. ("8.0", "9.0", "12.0+PTX"), read from its fat binaries.
    """

    machine: str
    needed: tuple[str, ...]
    runpath: str | None
    versions: tuple[tuple[str, str], ...]
    undefined: tuple[str, ...]
    exported: tuple[str, ...]
    capabilities: tuple[str, ...]


def read_library(path: Path) -> Library:
    """Read the dynamic part of an ELF file.

    Raises:
        AuditError: not an ELF shared library.
    """
    try:
        with path.open("rb") as file:
            return _read(ELFFile(file))
    except (ELFError, AttributeError, KeyError) as error:
        raise AuditError(f"{path} is not a shared library ({error}): build the package again") from None


@dataclass(frozen=True)
class Promise:
    """What a library is held against: its variant's name, its id, the archs that its metadata claims.

    `shim` holds the functions of torch's C shim that the targeted torch has; None where the linker saw to it.
    """

    variant: Variant
    kernel_id: str
    baseline: Baseline
    capabilities: Sequence[str]
    shim: Collection[str] | None = None


def violations(library: Library, promise: Promise) -> list[str]:
    """Every promise that `library` breaks, as sentences; empty when it keeps them all."""
    return [sentence for check in CHECKS.values() for sentence in check(library, promise)]


def _machine(library: Library, promise: Promise) -> list[str]:
    platform = promise.variant.platform
    if platform is None or library.machine == _MACHINES.get(platform.arch):
        return []
    return [f"it is for {library.machine}, not {platform.arch}"]


def _needed(library: Library, promise: Promise) -> list[str]:
    return [
        f"it needs {name}, which a user of {promise.variant} may not have"
        for name in library.needed
        if not _is_allowed(name, promise.variant)
    ]


def _versions(library: Library, promise: Promise) -> list[str]:
    return [
        f"it needs {version} of {name}, newer than manylinux_2_28 offers"
        for name, version in library.versions
        if _SYSTEM_LIBRARIES.fullmatch(name) and allowed_version(version, promise.baseline) is None
    ]


def _search_path(library: Library, promise: Promise) -> list[str]:
    return [] if library.runpath is None else [f"it carries the search path {library.runpath!r}"]


def _symbols(library: Library, promise: Promise) -> list[str]:
    return [
        f"it needs the symbol {symbol}, which a user of {promise.variant} may not have"
        for symbol in library.undefined
        if not _is_offered(symbol, promise.variant)
        or (promise.shim is not None and _C_SHIM.fullmatch(symbol) and symbol not in promise.shim)
    ]


def _exports(library: Library, promise: Promise) -> list[str]:
    entry = f"PyInit_{promise.kernel_id}"
    exported = ", ".join(library.exported) or "nothing"
    if promise.variant.framework.name == "tvm-ffi":
        if library.exported and all(_TVM_FFI_EXPORT.fullmatch(name) for name in library.exported):
            return []
        return [f"it exports {exported}, not tvm-ffi functions alone"]
    return [] if library.exported == (entry,) else [f"it exports {exported}, not {entry} alone"]


def _archs(library: Library, promise: Promise) -> list[str]:
    if library.capabilities == tuple(sorted(promise.capabilities, key=capability_key)):
        return []
    claimed, real = ", ".join(promise.capabilities) or "none", ", ".join(library.capabilities) or "none"
    return [f"it holds code for compute capabilities {real}, its metadata says {claimed}"]


CHECKS: Mapping[str, Callable[[Library, Promise], list[str]]] = {
    "machine": _machine,
    "libraries": _needed,
    "symbol versions": _versions,
    "search path": _search_path,
    "stable ABI": _symbols,
    "exports": _exports,
    "archs": _archs,
}


def leaked_paths(data: bytes, paths: Iterable[Path]) -> list[str]:
    """Which of the build machine's `paths` occur in the bytes of a library."""
    return [
        f"it contains the path {path} of the build machine" for path in paths if str(path).encode() in data
    ]


def _is_offered(symbol: str, variant: Variant) -> bool:
    """Whether a symbol without a version is in what the variant's name says the user has."""
    if symbol in _WEAK_RUNTIME:
        return True
    if variant.backend.name == "cuda" and symbol.startswith(("cuda", "__cuda")):
        return True
    if variant.framework.name == "tvm-ffi":
        return symbol.startswith("TVMFFI")
    if variant.python is not None:
        return symbol.startswith(("Py", "_Py"))
    if variant.framework.name == "torch" and _TORCH_CXX.fullmatch(symbol):
        return True
    return symbol in _PYTHON_SYMBOLS or _C_SHIM.fullmatch(symbol) is not None


def _is_allowed(name: str, variant: Variant) -> bool:
    framework = _TVM_FFI_LIBRARIES if variant.framework.name == "tvm-ffi" else _TORCH_LIBRARIES
    if _SYSTEM_LIBRARIES.fullmatch(name) or name in framework:
        return True
    cuda = variant.backend.version if variant.backend.name == "cuda" else None
    if cuda is None:
        return False
    match = _CUDA_LIBRARIES.fullmatch(name)
    from_torch = variant.framework.name != "tvm-ffi" and name in _TORCH_CUDA_LIBRARIES
    return from_torch or (match is not None and int(match[2]) == cuda[0])


def _read(elf: ELFFile) -> Library:
    section: Callable[[str], Any] = elf.get_section_by_name  # pyelftools types its sections too widely
    dynamic = section(".dynamic")
    if not isinstance(dynamic, DynamicSection):
        raise ELFError("no dynamic section")
    tags: list[Any] = list(dynamic.iter_tags())
    needed = tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED")
    runpath = [tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH"]
    runpath += [tag.rpath for tag in tags if tag.entry.d_tag == "DT_RPATH"]
    verneed = section(".gnu.version_r")
    versions: list[tuple[str, str]] = []
    if isinstance(verneed, GNUVerNeedSection):
        versions = [
            (str(need.name), str(aux.name)) for need, auxes in verneed.iter_versions() for aux in auxes
        ]
    undefined, exported = _symbols_of(elf)
    return Library(
        machine=elf["e_machine"],
        needed=needed,
        runpath=runpath[0] if runpath else None,
        versions=tuple(sorted(versions)),
        undefined=tuple(sorted(undefined)),
        exported=tuple(sorted(exported)),
        capabilities=_capabilities(elf),
    )


def _symbols_of(elf: ELFFile) -> tuple[list[str], list[str]]:
    """Names in `.dynsym`: those undefined without a version, so not of the C or C++ runtime, and those defined.

    Read from the bytes: a package has thousands of them, and an object for each takes most of an audit's time.
    """
    section: Callable[[str], Any] = elf.get_section_by_name
    names, versym = section(".dynstr").data(), section(".gnu.version")
    versions = versym.data() if versym is not None else b""
    undefined, exported = [], []
    for index, (at, info, _, home, _, _) in enumerate(_SYMBOL.iter_unpack(section(".dynsym").data())):
        name = names[at : names.index(b"\0", at)].decode()
        if not name or info & 0xF == _SECTION_SYMBOL:
            continue
        if home:
            exported.append(name)
        elif not versions or int.from_bytes(versions[2 * index : 2 * index + 2], "little") <= _UNVERSIONED:
            undefined.append(name)
    return undefined, exported


def _capabilities(elf: ELFFile) -> tuple[str, ...]:
    """Compute capabilities in `.nv_fatbin`: a device binary gives "9.0" or "9.0a", PTX adds "+PTX"."""
    section = elf.get_section_by_name(".nv_fatbin")
    if section is None:
        return ()
    data = section.data()
    binaries: set[str] = set()
    ptx: set[str] = set()
    at = 0
    while at + 16 <= len(data):
        magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
        if magic != _FATBIN_MAGIC:
            at += 8  # fat binaries are aligned; padding lies between them
            continue
        entry, end = at + header, at + header + size
        while entry + 48 <= end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, entry)
            arch, _, flags = struct.unpack_from("<IQQ", data, entry + 28)
            suffix = "a" if flags & _FATBIN_ARCH_ONLY else "f" if flags & _FATBIN_FAMILY else ""
            found = {_FATBIN_PTX: ptx, _FATBIN_ELF: binaries}.get(kind, set())
            found.add(f"{arch // 10}.{arch % 10}{suffix}")
            entry += entry_header + payload
        at = end
    names = [f"{arch}+PTX" if arch in ptx else arch for arch in binaries | ptx]
    return tuple(sorted(names, key=capability_key))
