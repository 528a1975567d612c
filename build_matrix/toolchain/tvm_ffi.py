"""tvm-ffi's headers and a library to link against, from PyPI.

Kernels are compiled with a series' newest headers and linked against the symbols of its oldest release, so
that one binary serves the whole series: what is newer fails to link here instead of to load elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from hub_loader.errors import ToolchainError

from ..matrix import TvmFfiRelease
from .cache import ToolchainCache
from .host import HostCompiler
from .stubs import StubSymbol, write_stub
from .wheel_files import wheel_files

LIBRARY = "libtvm_ffi.so"
_FORMAT = 1
_INCLUDE, _LIB = "tvm_ffi/include", "tvm_ffi/lib"
_PREFIX = "TVMFFI"


@dataclass(frozen=True)
class TvmFfiSdk:
    """`root` holds the headers; `library` is a stub with the symbols that every release of the series has."""

    root: Path
    library: Path

    @property
    def include_dirs(self) -> tuple[Path, ...]:
        return (self.root / _INCLUDE,)


def tvm_ffi_sdk(
    cache: ToolchainCache, compiler: HostCompiler, release: TvmFfiRelease, arch: str
) -> TvmFfiSdk:
    """The SDK of a series, fetched on first use (4 MB).

    Raises:
        ToolchainError: no such wheel, or a library without the C interface.
    """
    headers = wheel_files(cache, release.headers, arch, [_INCLUDE])
    oldest = wheel_files(cache, release.symbols, arch, [_LIB])

    def make(folder: Path) -> None:
        symbols = _c_interface(oldest / _LIB / LIBRARY)
        if not symbols:
            raise ToolchainError(f"{LIBRARY} of {release.symbols} exports no {_PREFIX} function")
        write_stub(compiler, folder / LIBRARY, [StubSymbol(name, None) for name in symbols])

    key = f"{_FORMAT} {release.symbols} {compiler.arch}"
    return TvmFfiSdk(headers, cache.provide("tvm-ffi-stub", key, make) / LIBRARY)


def _c_interface(library: Path) -> list[str]:
    with library.open("rb") as file:
        section: Callable[[str], Any] = ELFFile(file).get_section_by_name  # typed too widely by pyelftools
        symbols = section(".dynsym").iter_symbols()
        return sorted(s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s.name.startswith(_PREFIX))
