"""Link against the oldest system allowed, on any newer one: stub libraries without code.

A stub has a real library's name (soname) and, of its symbols, only those that the target offers. Linking
with `-z defs` against stubs therefore proves conformance: a symbol newer than glibc 2.28, or a torch
function newer than the stable ABI targeted, fails to link instead of failing on a user's machine.

The C and C++ runtime stubs are derived from the build machine's own libraries, which list every symbol
with the version that introduced it; the torch stubs from the C shim headers at the target version.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerSymSection

from hub_loader.errors import ToolchainError

from ..matrix import Baseline
from .cache import ToolchainCache
from .host import HostCompiler
from .torch_sdk import TorchSdk

_FORMAT = 7
_LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
_SYSTEM = (
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libgcc_s.so.1",
    "libstdc++.so.6",
)
# The one symbol of newer glibc that libstdc++'s inline code reads; false is the safe answer on any system.
_COMPAT_SOURCE = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'
_SHIM_HEADERS = (
    "torch/csrc/stable/c/shim.h",
    "torch/csrc/inductor/aoti_torch/c/shim.h",
    "torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h",
)
# Lists of the shim's functions, without and with those of CUDA.
_DECLARED = ("shim-cpu.txt", "shim-cuda.txt")
_SHIM_FUNCTION = re.compile(r'__attribute__\s*\(\(__visibility__\("default"\)\)\)[^;{}()]*?\b(\w+)\s*\(')


@dataclass(frozen=True)
class StubSymbol:
    """A symbol a stub defines. `version` is its version node or None; `size` is 0 for a function."""

    name: str
    version: str | None
    size: int = 0
    thread_local: bool = False


def system_stubs(cache: ToolchainCache, compiler: HostCompiler, baseline: Baseline) -> Path:
    """A folder of stubs of the C and C++ runtime at `baseline`, and `compat.o` to link in.

    Raises:
        ToolchainError: the compiler finds no libstdc++ or libc to derive them from.
    """
    names = (*_SYSTEM, _LOADERS[compiler.arch])
    libraries = {name: compiler.file(name) for name in names}
    for name in ("libc.so.6", "libstdc++.so.6"):
        if libraries[name] is None:
            raise ToolchainError(f"{compiler.path} finds no {name}: install the C++ development packages")
    present = {name: path for name, path in libraries.items() if path is not None}
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in present.values()]

    def make(folder: Path) -> None:
        for name, path in present.items():
            write_stub(compiler, folder / name, list(_within(path, baseline)))
        (folder / "compat.c").write_text(_COMPAT_SOURCE)
        _run([compiler.path, "-x", "c", "-O2", "-fPIC", "-c", "compat.c", "-o", "compat.o"], folder)

    return cache.provide(f"stubs-{compiler.arch}", f"{_FORMAT} {baseline} {digests}", make)


def torch_stubs(
    cache: ToolchainCache, compiler: HostCompiler, sdk: TorchSdk, target: tuple[int, int] | None
) -> Path:
    """A folder of torch's libraries (`torch_libraries`) that define the stable C shim at `target`.

    Without a target they define nothing and only give the linker their names: of torch's C++ interface
    there is no list. What its headers declare of the C shim is then beside them (`declared_shim`).

    Raises:
        ToolchainError: the headers declare no shim functions.
    """

    def make(folder: Path) -> None:
        symbols: dict[str, set[str]] = {}
        if target is not None:
            cpu = shim_functions(compiler, sdk, target, cuda=False)
            if not cpu:
                raise ToolchainError(f"the headers of torch {sdk.release} declare no stable ABI at {target}")
            both = shim_functions(compiler, sdk, target, cuda=True)
            symbols = {"libtorch_cpu.so": cpu, "libtorch_cuda.so": both - cpu}
        else:
            for name in _DECLARED:
                functions = shim_functions(compiler, sdk, None, cuda=name == _DECLARED[True])
                (folder / name).write_text("\n".join(sorted(functions)))
        for name in torch_libraries(cuda=True, stable=target is not None):
            wanted = sorted(symbols.get(name, ()))
            write_stub(compiler, folder / name, [StubSymbol(function, None) for function in wanted])

    key = f"{_FORMAT} {sdk.root.name} {target or 'declared'} {compiler.arch} {_SHIM_HEADERS}"
    return cache.provide(f"torch-stubs-{sdk.release}", key, make)


def declared_shim(stubs: Path, *, cuda: bool) -> frozenset[str]:
    """The functions of the C shim that an exact torch has, of its `torch_stubs` without a target."""
    return frozenset((stubs / _DECLARED[cuda]).read_text().split())


def torch_libraries(*, cuda: bool, stable: bool) -> tuple[str, ...]:
    """The libraries of torch that a binding is linked against. The stable ABI lies in the large ones alone."""
    cpu = ("libtorch_cpu.so",) if stable else ("libc10.so", "libtorch_cpu.so")
    gpu = ("libtorch_cuda.so",) if stable else ("libc10_cuda.so", "libtorch_cuda.so")
    return cpu + gpu if cuda else cpu


def shim_functions(
    compiler: HostCompiler, sdk: TorchSdk, target: tuple[int, int] | None, *, cuda: bool
) -> set[str]:
    """Names of the C functions that the shim headers declare at `target` (None: all of them)."""
    include, _ = sdk.include_dirs
    source = "".join(f"#include <{header}>\n" for header in _SHIM_HEADERS if (include / header).is_file())
    command: list[str | Path] = [compiler.path, "-x", "c++", "-std=c++17", "-E", "-P", "-"]
    command += [f"-I{path}" for path in sdk.include_dirs]
    command += target_define(target)
    command += ["-DUSE_CUDA"] if cuda else []
    return set(_SHIM_FUNCTION.findall(_run(command, None, source)))


def target_define(target: tuple[int, int] | None) -> list[str]:
    """The define that limits torch's headers to the stable ABI of `target` (major, minor)."""
    if target is None:
        return []
    return [f"-DTORCH_TARGET_VERSION=0x{target[0]:02x}{target[1]:02x}000000000000"]


def write_stub(compiler: HostCompiler, path: Path, symbols: Sequence[StubSymbol]) -> None:
    """Write a shared library at `path`, its soname the file's name, that defines `symbols` and nothing else."""
    lines = [".text"]
    for number, symbol in enumerate(symbols):
        label = symbol.name if symbol.version is None else f"__stub_{number}"
        section, kind, body = (".text", "function", ".byte 0")
        if symbol.size:
            section, kind, body = (".data", "object", f".zero {symbol.size}")
        if symbol.thread_local:
            section, kind = ('.section .tdata,"awT"', "tls_object")
        lines += [section, f".globl {label}", f".type {label}, %{kind}"]
        if symbol.size:
            lines.append(f".size {label}, {symbol.size}")
        lines += [f"{label}:", body]
        if symbol.version is not None:
            lines.append(f".symver {label}, {symbol.name}@@@{symbol.version}")
    assembly = path.with_suffix(".s")
    assembly.write_text("\n".join(lines) + "\n")
    command: list[str | Path] = [
        compiler.path,
        "-shared",
        "-nostdlib",
        "-fPIC",
        f"-Wl,-soname,{path.name}",
        "-o",
        path.name,
    ]
    versions = sorted({symbol.version for symbol in symbols if symbol.version is not None})
    if versions:
        script = path.with_suffix(".map")
        script.write_text("".join(f"{version} {{ }};\n" for version in versions))
        command.append(f"-Wl,--version-script={script.name}")
    _run([*command, assembly.name], path.parent)


def _within(library: Path, baseline: Baseline) -> Iterable[StubSymbol]:
    """Of each symbol of `library`, the newest version that `baseline` allows."""
    best: dict[str, tuple[tuple[int, ...], StubSymbol]] = {}
    for symbol in exported_symbols(library):
        number = allowed_version(symbol.version or "", baseline)
        if number is not None and (symbol.name not in best or number > best[symbol.name][0]):
            best[symbol.name] = (number, symbol)
    return (symbol for _, (_, symbol) in sorted(best.items()))


def allowed_version(version: str, baseline: Baseline) -> tuple[int, ...] | None:
    """A symbol version's number if `baseline` allows it, else None: "GLIBC_2.14" gives (2, 14)."""
    family, _, number = version.rpartition("_")
    limits = {
        "GLIBC": baseline.glibc,
        "GLIBCXX": baseline.glibcxx,
        "CXXABI": baseline.cxxabi,
        "GCC": baseline.gcc,
    }
    if family not in limits or not re.fullmatch(r"\d+(\.\d+)*", number):
        return None
    parts = tuple(int(part) for part in number.split("."))
    return parts if parts <= limits[family] else None


def exported_symbols(library: Path) -> Iterable[StubSymbol]:
    """The versioned functions and objects that a shared library defines."""
    with library.open("rb") as file:
        section: Callable[[str], Any] = ELFFile(file).get_section_by_name  # typed too widely by pyelftools
        dynsym, versym, verdef = section(".dynsym"), section(".gnu.version"), section(".gnu.version_d")
        if not isinstance(versym, GNUVerSymSection) or not isinstance(verdef, GNUVerDefSection):
            return
        names = {entry["vd_ndx"]: next(iter(aux)).name for entry, aux in verdef.iter_versions()}
        for index, symbol in enumerate(dynsym.iter_symbols()):
            kind = symbol["st_info"]["type"]
            if symbol["st_shndx"] in ("SHN_UNDEF", "SHN_ABS") or kind not in (
                "STT_FUNC",
                "STT_OBJECT",
                "STT_TLS",
                "STT_LOOS",
            ):
                continue  # STT_LOOS is a function chosen at load time (ifunc)
            entry = versym.get_symbol(index)["ndx"]
            if isinstance(entry, str):
                continue  # local or global without a version
            size = max(1, symbol["st_size"]) if kind in ("STT_OBJECT", "STT_TLS") else 0
            yield StubSymbol(symbol.name, names.get(entry & 0x7FFF), size, kind == "STT_TLS")


def _run(command: Sequence[str | Path], cwd: Path | None, stdin: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise ToolchainError(
            f"{Path(command[0]).name} failed to make a link stub: {done.stderr.strip()[-500:]}"
        )
    return done.stdout
