"""New torch releases, read off the index through pip: a line of `matrix.toml` for each that is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement

from hub_loader.errors import ToolchainError
from hub_loader.variant import Version

from .matrix import MATRIX_FILE, Matrix, minor_of
from .toolchain.pip import NoSuchWheelError, WheelLocation, available_versions, locate_wheel
from .toolchain.ranged import open_source, read_members

# Interpreters worth asking for: none older than the oldest that a wheel of the matrix is for.
_PYTHONS = tuple((3, minor) for minor in range(9, 20))
_ARCHS = ("x86_64", "aarch64")
_CUDA = re.compile(r"cuda-toolkit|nvidia-cuda-runtime(-cu\d+)?")
_END_OF_LIST = re.compile(r"^\]$", re.MULTILINE)


def missing_releases(matrix: Matrix) -> list[str]:
    """The newest release of each minor series that the index has and `matrix` has not, ascending.

    Raises:
        ToolchainError: the index cannot be reached.
    """
    return newest_of_unknown(available_versions("torch"), [torch.minor for torch in matrix.torch])


def newest_of_unknown(versions: Iterable[str], known: Sequence[Version]) -> list[str]:
    """Of final releases "X.Y.Z" newer than the oldest of `known`, the newest of each series not known. Pure."""
    newest: dict[Version, tuple[int, str]] = {}
    for version in versions:
        if re.fullmatch(r"\d+\.\d+\.\d+", version):
            minor, patch = minor_of(version), int(version.split(".")[2])
            if minor > min(known) and minor not in known:
                newest[minor] = max(newest.get(minor, (patch, version)), (patch, version))
    return [version for _, (_, version) in sorted(newest.items())]


def propose(release: str) -> str:
    """The line of `matrix.toml` for a release, as its wheels are.

    Raises:
        ToolchainError: the index has no wheel of it.
    """
    pythons = [python for python in _PYTHONS if _wheel(release, python, _ARCHS[0]) is not None]
    if not pythons:
        raise ToolchainError(f"the index has no wheel of torch {release} for {_ARCHS[0]}")
    wheels = {arch: _wheel(release, pythons[-1], arch) for arch in _ARCHS}
    return line(release, pythons, {arch: _requires(wheel) for arch, wheel in wheels.items() if wheel})


def line(release: str, pythons: Sequence[Version], requires: dict[str, tuple[str, ...]]) -> str:
    """A line of `matrix.toml` from what the wheels for each architecture require. Pure.

    Wheels have the C++11 ABI from torch 2.7 on, and no file in them says so since 2.8.
    """
    oldest, newest = (f"{major}.{minor}" for major, minor in (pythons[0], pythons[-1]))
    parts = [f'release = "{release}"', f'python = "{oldest}-{newest}"']
    for arch, requirements in requires.items():
        cuda = _cuda(requirements, arch)
        facts = [] if cuda is None else [f'cuda = "{cuda[0]}.{cuda[1]}"']
        parts.append(f"{arch} = {{ {', '.join([*facts, 'cxx11-abi = true'])} }}")
    return f"    {{ {', '.join(parts)} }},"


def _requires(wheel: WheelLocation) -> tuple[str, ...]:
    """What a wheel requires, read out of its metadata."""
    with open_source(wheel.url) as source:
        for _, content in read_members(source, lambda member: member.endswith(".dist-info/METADATA")):
            return tuple(message_from_bytes(content).get_all("Requires-Dist", ()))
    raise ToolchainError(f"{wheel.url} holds no METADATA: use another index")


def _cuda(requirements: Iterable[str], arch: str) -> Version | None:
    """The CUDA that a wheel requires on `arch`; a wheel's requirements name other machines' too."""
    place = {"platform_machine": arch, "platform_system": "Linux", "sys_platform": "linux"}
    for requirement in map(Requirement, requirements):
        applies = requirement.marker is None or requirement.marker.evaluate({**place, "extra": ""})
        if applies and _CUDA.fullmatch(requirement.name):
            pin = next(iter(requirement.specifier)).version
            return minor_of(pin)
    return None


def add_lines(lines: Sequence[str], path: Path = MATRIX_FILE) -> None:
    """Put `lines` at the end of the list of torch releases, whole or not at all."""
    text = path.read_text(encoding="utf-8")
    end = _END_OF_LIST.search(text, text.index("torch = ["))
    assert end is not None  # the list that was just read ends somewhere
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text[: end.start()] + "\n".join(lines) + "\n" + text[end.start() :])
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _wheel(release: str, python: Version, arch: str) -> WheelLocation | None:
    """The wheel, or None where the index has the release and no wheel for this interpreter and architecture."""
    try:
        return locate_wheel(
            f"torch=={release}", platform=f"manylinux_2_28_{arch}", python=f"{python[0]}.{python[1]}"
        )
    except NoSuchWheelError:
        return None
