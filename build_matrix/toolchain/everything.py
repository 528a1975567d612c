"""Every toolchain of the matrix at once: what `khub matrix lock` fetches to know the hashes."""

from __future__ import annotations

from ..matrix import Matrix
from .cache import ToolchainCache
from .cross import cross_compiler
from .cuda import cuda_headers, cuda_toolkit
from .emulator import fetch_emulator
from .hollow import torch_dependencies
from .host import find_compiler
from .python import pybind11_headers
from .torch_sdk import torch_sdk
from .tvm_ffi import tvm_ffi_sdk
from .wheel_files import wheel_files


def fetch_everything(cache: ToolchainCache, matrix: Matrix) -> None:
    """Provide every part that a cell of the matrix may need.

    Raises:
        ToolchainError: one cannot be had.
    """
    pybind11_headers(cache, matrix.pybind11.package)
    torch_dependencies(cache)
    archs = sorted({wheel.arch for torch in matrix.torch for wheel in torch.wheels})
    compilers = [find_compiler(), *(cross_compiler(cache, release) for release in matrix.cross.values())]
    for compiler in compilers:
        tvm_ffi_sdk(cache, compiler, matrix.tvm_ffi, compiler.arch)
    for release in matrix.cuda.values():
        for arch in archs if release.debian is None else archs[-1:]:
            cuda_toolkit(cache, release, arch)
            cuda_headers(cache, release, arch)
    for emulator in matrix.emulator.values():
        fetch_emulator(cache, emulator)
    for arch in archs:
        for library in matrix.libraries.values():
            wheel_files(cache, library.package, arch, [library.include])
        for torch in matrix.torch:
            torch_sdk(cache, torch.release, arch)
