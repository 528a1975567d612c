"""A CUDA compiler from PyPI packages: no system toolkit, no driver, no GPU needed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import ToolchainError

from ..matrix import CudaRelease
from .cache import ToolchainCache
from .pip import install_into
from .wheel_files import wheel_files


@dataclass(frozen=True)
class CudaToolkit:
    """nvcc, headers and the runtime library of one CUDA release."""

    version: tuple[int, int]
    root: Path

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def runtime(self) -> str:
        """The shared runtime's file name, e.g. libcudart.so.13."""
        return f"libcudart.so.{self.version[0]}"


def cuda_toolkit(cache: ToolchainCache, release: CudaRelease) -> CudaToolkit:
    """The toolkit of `release`, fetched on first use (about 100 MB).

    Raises:
        ToolchainError: the index lacks a package, or the packages hold no compiler.
    """

    def fetch(folder: Path) -> None:
        print(f"fetching the CUDA {_dotted(release.version)} compiler (about 100 MB)", file=sys.stderr)
        install_into(folder, release.packages)
        for needed in ("bin/nvcc", "include/cuda_runtime.h", "lib/libcudart.so." + str(release.version[0])):
            if not (_root(folder, release) / needed).exists():
                raise ToolchainError(f"the packages {', '.join(release.packages)} hold no {needed}")

    name = f"cuda-{_dotted(release.version)}"
    folder = cache.provide(name, " ".join(release.packages), fetch)
    return CudaToolkit(release.version, _root(folder, release))


def cuda_headers(cache: ToolchainCache, release: CudaRelease, arch: str) -> tuple[Path, ...]:
    """Include folders of the libraries that torch's CUDA headers include: 1 MB read out of wheels of hundreds.

    Raises:
        ToolchainError: the index lacks one, or cannot be read by ranges.
    """
    include = f"nvidia/cu{release.version[0]}/include"
    return tuple(wheel_files(cache, package, arch, [include]) / include for package in release.headers)


def _root(folder: Path, release: CudaRelease) -> Path:
    return folder / "nvidia" / f"cu{release.version[0]}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
