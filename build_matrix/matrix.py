"""`matrix.toml` as types: the torch releases, compilers and systems that builds are made with and for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_loader.variant import Backend, Platform, Variant, Version, parse_backend

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MATRIX_FILE = Path(__file__).with_name("matrix.toml")


@dataclass(frozen=True)
class Baseline:
    """The oldest system that binaries must load on: highest symbol version allowed of each family."""

    glibc: tuple[int, ...]
    glibcxx: tuple[int, ...]
    cxxabi: tuple[int, ...]
    gcc: tuple[int, ...]


@dataclass(frozen=True)
class DebianPackages:
    """Packages of one Debian suite, each as "name=version", for the machines that Debian calls `architecture`."""

    suite: str
    component: str
    packages: tuple[str, ...]
    architecture: str = "amd64"


@dataclass(frozen=True)
class WheelFile:
    """One file of a wheel: the pinned requirement and the path inside."""

    package: str
    file: str


@dataclass(frozen=True)
class Assembler:
    """Newer tools that make code for `capabilities`, which the compiler does not know, of its PTX for `ptx`."""

    capabilities: tuple[str, ...]
    ptx: str
    ptxas: WheelFile
    fatbinary: WheelFile


@dataclass(frozen=True)
class CudaRelease:
    """A CUDA compiler: pinned requirements, and its compute capabilities.

    `debian` holds the compiler where PyPI has headers alone. `headers` are requirements of which only the
    headers are wanted; `capabilities` are compiled unless a kernel names its own, of which those not
    `supported` are left out. With an `assembler`, some of those supported are newer than the compiler.
    """

    version: Version
    packages: tuple[str, ...]
    debian: DebianPackages | None
    headers: tuple[str, ...]
    supported: tuple[str, ...]
    capabilities: tuple[str, ...]
    assembler: Assembler | None = None


@dataclass(frozen=True)
class CrossRelease:
    """A g++ of Debian for another architecture; `version` is the suffix of its commands' names."""

    arch: str
    version: str
    debian: DebianPackages


@dataclass(frozen=True)
class EmulatorRelease:
    """What runs another architecture's programs: a static qemu, and a small system with a CPython `python`."""

    arch: str
    python: Version
    qemu: DebianPackages
    system: DebianPackages


@dataclass(frozen=True)
class TorchWheel:
    """What torch's wheel for one architecture is; `cuda` is None for a CPU-only one."""

    arch: str
    cuda: Version | None
    cxx11_abi: bool


@dataclass(frozen=True)
class TorchRelease:
    """A torch release: the oldest and newest Python of its wheels, and a wheel for each architecture."""

    release: str
    pythons: tuple[Version, Version]
    wheels: tuple[TorchWheel, ...]

    @property
    def minor(self) -> Version:
        return minor_of(self.release)

    def wheel(self, arch: str) -> TorchWheel | None:
        return next((wheel for wheel in self.wheels if wheel.arch == arch), None)


@dataclass(frozen=True)
class Target:
    """A backend on an architecture, such as cu130-x86_64."""

    backend: Backend
    arch: str


@dataclass(frozen=True)
class TvmFfiRelease:
    """A series of tvm-ffi: requirements for its newest headers and for the library with its oldest symbols."""

    version: Version
    headers: str
    symbols: str
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class HeaderLibrary:
    """What a component's `depends` names: a requirement, and the folder inside it to include from."""

    package: str
    include: str


@dataclass(frozen=True)
class Pybind11:
    """The interpreters (cp311, …) that pybind11 bindings are built for, and the pinned requirement of its headers."""

    package: str
    pythons: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """`matrix.toml`, parsed. `load` are those of `torch` that built variants are loaded into, oldest first."""

    torch: tuple[TorchRelease, ...]
    stable_headers: str
    backfill: Version
    stable_targets: tuple[Target, ...]
    tvm_ffi: TvmFfiRelease
    libraries: Mapping[str, HeaderLibrary]
    pybind11: Pybind11
    cuda: Mapping[Version, CudaRelease]
    cross: Mapping[str, CrossRelease]
    os: str
    baseline: Baseline
    load: tuple[TorchRelease, ...]
    emulator: Mapping[str, EmulatorRelease]


@dataclass(frozen=True)
class Cell:
    """One variant to build: the torch whose headers compile it and, for CUDA, the compiler and archs.

    `torch_release` is None where torch is not compiled against; `stable_abi` is the oldest torch (major,
    minor) targeted, None for an exact build. `backfill` is an older torch release for which the stable ABI is
    brought along: the functions that it lacks are compiled with its own headers. `packages` are the requirements
    it needs beside those. A cell `on_request` is built only when it is asked for by its torch's name. For one
    interpreter, `python_release` is the CPython whose headers compile the binding, e.g. "3.11.7", and `pybind11`
    the requirement of the other ones.
    """

    variant: Variant
    torch_release: str | None
    stable_abi: Version | None = None
    cuda: CudaRelease | None = None
    capabilities: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    on_request: bool = False
    backfill: str | None = None
    python_release: str | None = None
    pybind11: str | None = None

    def __str__(self) -> str:
        return str(self.variant)

    @property
    def platform(self) -> Platform:
        """The platform compiled for; a cell that compiles has one."""
        assert self.variant.platform is not None
        return self.variant.platform


@dataclass(frozen=True)
class Unbuildable:
    """A variant the author asked for that this matrix cannot build, and why."""

    name: str
    reason: str


def read_matrix(path: Path = MATRIX_FILE) -> Matrix:
    """Read the matrix. It ships with the package, so a malformed one is a defect, not an input error."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    tvm_ffi: dict[str, Any] = data["tvm-ffi"]
    platform: dict[str, Any] = data["platform"]
    torch = {table["release"]: _torch_release(table) for table in data["torch"]}
    return Matrix(
        torch=tuple(torch.values()),
        stable_headers=data["stable-abi"]["headers"],
        backfill=_pair(data["stable-abi"]["backfill"]),
        stable_targets=tuple(_target(name) for name in data["stable-abi"]["targets"]),
        tvm_ffi=TvmFfiRelease(
            _pair(tvm_ffi["version"]),
            tvm_ffi["headers"],
            tvm_ffi["symbols"],
            tuple(_target(name) for name in tvm_ffi["targets"]),
        ),
        libraries={name: HeaderLibrary(**table) for name, table in data["libraries"].items()},
        pybind11=Pybind11(data["pybind11"]["package"], tuple(data["pybind11"]["pythons"])),
        cuda={_pair(version): _cuda_release(version, table) for version, table in data["cuda"].items()},
        cross={
            arch: CrossRelease(arch, table["version"], _debian(table["debian"]))
            for arch, table in data["cross"].items()
        },
        os=platform["os"],
        baseline=Baseline(*(_numbers(platform[key]) for key in ("glibc", "glibcxx", "cxxabi", "gcc"))),
        load=tuple(torch[release] for release in data["load"]["torch"]),
        emulator={
            arch: EmulatorRelease(
                arch, _pair(table["python"]), _debian(table["qemu"]), _debian(table["system"])
            )
            for arch, table in data["emulator"].items()
        },
    )


def minor_of(release: str) -> Version:
    """The minor series of a release: "2.15.0" gives (2, 15)."""
    major, minor, *_ = release.split(".")
    return int(major), int(minor)


def _torch_release(table: Mapping[str, Any]) -> TorchRelease:
    oldest, newest = table["python"].split("-")
    wheels = []
    for arch in ("x86_64", "aarch64"):
        if wheel := table.get(arch):
            cuda = _pair(wheel["cuda"]) if "cuda" in wheel else None
            wheels.append(TorchWheel(arch, cuda, wheel["cxx11-abi"]))
    return TorchRelease(table["release"], (_pair(oldest), _pair(newest)), tuple(wheels))


def _cuda_release(version: str, table: Mapping[str, Any]) -> CudaRelease:
    debian = _debian(table["debian"]) if "debian" in table else None
    headers, supported, capabilities = (tuple(table[key]) for key in ("headers", "supported", "capabilities"))
    assembler = _assembler(table["assembler"]) if "assembler" in table else None
    packages = tuple(table["packages"])
    return CudaRelease(_pair(version), packages, debian, headers, supported, capabilities, assembler)


def _assembler(table: Mapping[str, Any]) -> Assembler:
    ptxas, fatbinary = (WheelFile(**table[tool]) for tool in ("ptxas", "fatbinary"))
    return Assembler(tuple(table["capabilities"]), table["ptx"], ptxas, fatbinary)


def _debian(table: Mapping[str, Any]) -> DebianPackages:
    packages = tuple(table["packages"])
    return DebianPackages(table["suite"], table["component"], packages, table.get("architecture", "amd64"))


def _target(name: str) -> Target:
    backend, arch = name.split("-")
    return Target(parse_backend(backend), arch)


def _pair(version: str) -> Version:
    major, minor = version.split(".")
    return int(major), int(minor)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
