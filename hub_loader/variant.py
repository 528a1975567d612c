"""The grammar of build-variant names: one string names everything a binary depends on.

    torch213-cxx11-cu130-x86_64-linux            exact torch, C++ ABI, CUDA, arch, OS
    torch-stable-abi210-cpu-x86_64-linux         any torch from 2.10 on
    tvm-ffi01-cu130-x86_64-linux                 tvm-ffi 0.1
    torch-cuda, torch-cpu, torch-universal       noarch: Python and Triton only
    cp311-torch213-cxx11-cpu-x86_64-linux        a binding to one CPython's own ABI (ours)
    cp311-cpu-x86_64-linux                       the same without torch (ours)

The first four forms are the Hugging Face Hub's, so either client can load either's packages; a name
that begins with an interpreter tag is passed over by the other client. Pure: no input, no output.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from .record import Record

Version = tuple[int, int]


def dotted(version: Version | None) -> str:
    """(12, 8) as 12.8."""
    return "none" if version is None else f"{version[0]}.{version[1]}"


"""(major, minor)."""

FrameworkName = Literal["torch", "torch-stable-abi", "tvm-ffi", "torch-noarch", "none"]

_UNVERSIONED_BACKENDS = ("cpu", "metal", "neuron", "tpu")
# How many leading digits are the major version; the rest is the minor. "cu1310" is CUDA 13.10.
_VERSIONED_BACKENDS = {"cu": ("cuda", 2), "rocm": ("rocm", 1), "xpu": ("xpu", 4), "cann": ("cann", 1)}
_NOARCH_BACKENDS = ("cpu", "cuda", "rocm", "xpu", "metal", "neuron", "tpu", "npu", "universal")
_COMPONENT = re.compile(r"[a-z0-9_]+")
_PYTHON_TAG = re.compile(r"cp3\d+t?|abi3")


class Framework(Record):
    """What a variant's binary binds to.

    `version` is None only for "torch-noarch" and "none"; `cxx11_abi` is None unless the name says.
    """

    name: FrameworkName
    version: Version | None = None
    cxx11_abi: bool | None = None

    def __str__(self) -> str:
        digits = "" if self.version is None else f"{self.version[0]}{self.version[1]}"
        if self.name == "torch":
            abi = "" if self.cxx11_abi is None else ("-cxx11" if self.cxx11_abi else "-cxx98")
            return f"torch{digits}{abi}"
        if self.name == "torch-noarch":
            return "torch"
        return "" if self.name == "none" else f"{self.name}{digits}"


class Backend(Record):
    """The device a variant runs on; `version` is (major, minor) for cuda, rocm, xpu and cann."""

    name: str
    version: Version | None = None

    def __str__(self) -> str:
        if self.version is None:
            return self.name
        prefix = "cu" if self.name == "cuda" else self.name
        return f"{prefix}{self.version[0]}{self.version[1]}"


class Platform(Record):
    """CPU architecture and operating system as the Hub spells them, e.g. x86_64 and linux."""

    arch: str
    os: str

    def __str__(self) -> str:
        return f"{self.arch}-{self.os}"


class Variant(Record):
    """A parsed build-variant name; `str()` gives the name back.

    `platform` is None exactly for noarch variants; `python` is an interpreter tag or None.
    """

    framework: Framework
    backend: Backend
    platform: Platform | None = None
    python: str | None = None

    @property
    def is_noarch(self) -> bool:
        return self.platform is None

    def __str__(self) -> str:
        parts = (self.python, str(self.framework), str(self.backend), self.platform and str(self.platform))
        return "-".join(part for part in parts if part)


@lru_cache(maxsize=4096)  # who judges many environments asks for the same few names again and again
def parse_variant(name: str) -> Variant:
    """Parse a build-variant name.

    Raises:
        ValueError: the name is not in the grammar, or is not the canonical spelling.
    """
    parts = name.split("-")
    python = parts.pop(0) if len(parts) > 1 and _PYTHON_TAG.fullmatch(parts[0]) else None
    framework, rest = _parse_framework(name, parts, python)
    if framework.name == "torch-noarch":
        if len(rest) != 1 or rest[0] not in _NOARCH_BACKENDS or python is not None:
            raise ValueError(f"{name!r}: a noarch variant is torch-<{'|'.join(_NOARCH_BACKENDS)}>")
        return Variant(framework, Backend(rest[0]))
    if len(rest) != 3 or not all(_COMPONENT.fullmatch(part) for part in rest):
        raise ValueError(f"{name!r}: expected <backend>-<arch>-<os> after {'-'.join(parts[: -len(rest)])!r}")
    variant = Variant(framework, parse_backend(rest[0]), Platform(rest[1], rest[2]), python)
    if str(variant) != name:
        raise ValueError(f"{name!r} is not canonical: write {str(variant)!r}")
    return variant


def parse_backend(name: str) -> Backend:
    """Parse a backend as variant names spell it: cpu, cu130, rocm63, xpu20252, …

    Raises:
        ValueError: unknown backend, or a version without a minor part.
    """
    if name in _UNVERSIONED_BACKENDS:
        return Backend(name)
    match = re.fullmatch(r"([a-z]+)(\d+)", name)
    if match and match[1] in _VERSIONED_BACKENDS:
        backend, major_digits = _VERSIONED_BACKENDS[match[1]]
        digits = match[2]
        if len(digits) == 2:  # cu92 and older spellings: one digit each
            major_digits = 1
        if len(digits) > major_digits:
            return Backend(backend, (int(digits[:major_digits]), int(digits[major_digits:])))
    known = ", ".join((*_UNVERSIONED_BACKENDS, *(f"{prefix}<version>" for prefix in _VERSIONED_BACKENDS)))
    raise ValueError(f"unknown backend {name!r}: expected one of {known}")


def _parse_framework(name: str, parts: list[str], python: str | None) -> tuple[Framework, list[str]]:
    """Split the framework off the front: (framework, remaining components)."""
    if parts[:2] == ["torch", "stable"] and len(parts) > 2:
        return Framework("torch-stable-abi", _one_digit_major(name, parts[2], "abi")), parts[3:]
    if parts[0] == "tvm" and len(parts) > 1:
        return Framework("tvm-ffi", _one_digit_major(name, parts[1], "ffi")), parts[2:]
    if parts[0] == "torch":
        return Framework("torch-noarch"), parts[1:]
    if parts[0].startswith("torch"):
        version = _one_digit_major(name, parts[0], "torch")
        if len(parts) > 1 and parts[1] in ("cxx11", "cxx98"):
            return Framework("torch", version, parts[1] == "cxx11"), parts[2:]
        return Framework("torch", version), parts[1:]
    if python is not None:
        return Framework("none"), parts
    raise ValueError(
        f"{name!r}: unknown framework {parts[0]!r}; expected torch, tvm-ffi or an interpreter tag"
    )


def _one_digit_major(name: str, part: str, prefix: str) -> Version:
    match = re.fullmatch(rf"{prefix}(\d)(\d+)", part)
    if not match:
        raise ValueError(f"{name!r}: {part!r} is not {prefix}<major digit><minor>")
    return int(match[1]), int(match[2])
