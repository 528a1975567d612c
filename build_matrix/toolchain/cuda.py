"""A CUDA compiler from packages: no system toolkit, no driver, no GPU needed.

CUDA 13 is complete on PyPI. Of CUDA 12 PyPI has everything but the compiler: that is Debian's, unpacked, and
put where nvcc expects its parts. Either way the folder looks like a toolkit. Where matrix.toml names an
assembler, `fatbinary` is a script that also makes code for devices newer than the compiler.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hub_loader.errors import ToolchainError

from ..matrix import Assembler, CudaRelease
from .cache import ToolchainCache
from .debian import unpack_packages
from .wheel_files import unpack_members, wheel_files
from .wheels import unpack_wheels

_FORMAT = 1
_FATBINARY = Path(__file__).with_name("fatbinary.sh")
# The machine that compiles: the packages of matrix.toml hold compilers that run on it.
_HOST = "x86_64"
# Where Debian's package has what a toolkit holds elsewhere.
_DEBIAN = {
    "usr/lib/nvidia-cuda-toolkit/bin/nvcc": "bin/nvcc",
    "usr/lib/nvidia-cuda-toolkit/bin/cicc": "bin/cicc",
    "usr/lib/nvidia-cuda-toolkit/bin/crt": "bin/crt",
    "usr/lib/nvidia-cuda-toolkit/libdevice": "nvvm/libdevice",
    **{f"usr/bin/{tool}": f"bin/{tool}" for tool in ("bin2c", "cudafe++", "fatbinary", "nvlink", "ptxas")},
}
# Where nvcc looks for its parts; relative to itself, so that the folder may lie anywhere.
_PROFILE = """\
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
"""


@dataclass(frozen=True)
class CudaToolkit:
    """nvcc, headers and the runtime library of one CUDA release; `lib` is for the target's architecture."""

    version: tuple[int, int]
    root: Path
    lib: Path

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def runtime(self) -> str:
        """The shared runtime's file name, e.g. libcudart.so.13."""
        return f"libcudart.so.{self.version[0]}"


def cuda_toolkit(cache: ToolchainCache, release: CudaRelease, arch: str) -> CudaToolkit:
    """The toolkit of `release` that compiles for hosts of `arch`, fetched on first use (100 to 150 MB).

    Raises:
        ToolchainError: a package is not to be had or not as locked, or the packages hold no compiler.
    """

    def fetch(folder: Path) -> None:
        count = cache.traffic.count("cuda")
        unpack_wheels(folder, release.packages, _HOST, cache.downloads, cache.pins, count)
        if release.debian is not None:
            _merge_debian(folder, release, cache)
        for needed in ("bin/nvcc", "include/cuda_runtime.h", f"lib/libcudart.so.{release.version[0]}"):
            if not (folder / _inside(release) / needed).exists():
                raise ToolchainError(f"the packages {', '.join(release.packages)} hold no {needed}")
        if release.assembler is not None:
            _add_assembler(folder / _inside(release) / "bin", release.assembler, cache)

    key = f"{_FORMAT} {release.packages} {release.debian}"
    if release.assembler is not None:
        key += f" {release.assembler} {_FATBINARY.read_text()}"
    root = cache.provide(f"cuda-{_dotted(release)}", key, fetch) / _inside(release)
    lib = root / "lib"
    if arch != _HOST:
        runtime = next(package for package in release.packages if "-cuda-runtime" in package)
        inside = f"{_inside(release)}/lib"
        lib = wheel_files(cache, runtime, arch, [inside]) / inside
    return CudaToolkit(release.version, root, lib)


def cuda_headers(cache: ToolchainCache, release: CudaRelease, arch: str) -> tuple[Path, ...]:
    """Include folders of the libraries that torch's CUDA headers include: 1 MB read out of wheels of hundreds.

    Raises:
        ToolchainError: the index lacks one, or cannot be read by ranges.
    """
    folders = []
    for package in release.headers:
        library = package.partition("==")[0].removeprefix("nvidia-").removesuffix("-cu12")
        include = f"nvidia/{library}/include" if release.debian else f"{_inside(release)}/include"
        folders.append(wheel_files(cache, package, arch, [include]) / include)
    return tuple(folders)


def _merge_debian(folder: Path, release: CudaRelease, cache: ToolchainCache) -> None:
    """Make one toolkit of the wheels in `folder`, a folder for each library, and Debian's compiler."""
    assert release.debian is not None  # the caller looked
    top = folder / _inside(release)
    for part in sorted((folder / "nvidia").iterdir()):
        for name in ("include", "lib"):
            if (part / name).is_dir():
                shutil.copytree(part / name, top / name, dirs_exist_ok=True)
        if part.is_dir():
            shutil.rmtree(part)
    with tempfile.TemporaryDirectory(prefix=".debian-", dir=folder) as unpacked:
        count = cache.traffic.count("cuda")
        unpack_packages(Path(unpacked), release.debian, cache.downloads, cache.pins, count)
        for source, place in _DEBIAN.items():
            if not (Path(unpacked) / source).exists():
                raise ToolchainError(f"{', '.join(release.debian.packages)} holds no {source}")
            (top / place).parent.mkdir(parents=True, exist_ok=True)
            (Path(unpacked) / source).rename(top / place)
    (top / "bin" / "nvcc.profile").write_text(_PROFILE)


def _add_assembler(folder: Path, assembler: Assembler, cache: ToolchainCache) -> None:
    """Put the newer tools and the script that calls them into the `bin` of a toolkit."""
    (folder / "newer").mkdir()
    for name, source in (("ptxas", assembler.ptxas), ("fatbinary", assembler.fatbinary)):
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as unpacked:
            unpack_members(Path(unpacked), source.package, _HOST, [source.file], cache)
            (Path(unpacked) / source.file).rename(folder / "newer" / name)
        (folder / "newer" / name).chmod(0o755)
    (folder / "own").mkdir()
    (folder / "fatbinary").rename(folder / "own" / "fatbinary")
    shutil.copyfile(_FATBINARY, folder / "fatbinary")
    (folder / "fatbinary").chmod(0o755)


def _inside(release: CudaRelease) -> str:
    return f"nvidia/cu{release.version[0]}"


def _dotted(release: CudaRelease) -> str:
    return f"{release.version[0]}.{release.version[1]}"
