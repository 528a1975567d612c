"""Whole wheels, unpacked: compilers that PyPI has."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from hub_loader.errors import ToolchainError

from .download import download
from .pins import Pins
from .pip import locate_wheel
from .ranged import safe_path
from .traffic import Count, uncounted


def unpack_wheels(
    folder: Path,
    requirements: Sequence[str],
    arch: str,
    downloads: Path,
    pins: Pins,
    count: Count = uncounted,
) -> None:
    """Unpack the wheels of exactly `requirements` for `arch`, without their dependencies, into `folder`.

    `count` is told the bytes fetched.

    Raises:
        ToolchainError: the index lacks one, cannot be reached, or serves a file that is not as locked.
    """
    for requirement in requirements:
        wheel = locate_wheel(requirement, platform=f"manylinux_2_28_{arch}")
        path = download(wheel.url, wheel.name, downloads, pins, count)
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if not member.is_dir():
                        _extract(archive, member, folder / safe_path(member.filename))
        except zipfile.BadZipFile as error:
            raise ToolchainError(f"{wheel.url} is damaged: {error}; use another index") from None


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive.read(member))
    if member.external_attr >> 16 & 0o111:  # the file mode of Unix, which the zip format keeps there
        path.chmod(0o755)
