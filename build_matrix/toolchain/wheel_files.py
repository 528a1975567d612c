"""Some members of a wheel, by ranged reads: the headers of a library whose wheel is hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from hub_loader.errors import ToolchainError

from .cache import ToolchainCache
from .pins import Pins, digest_of_members
from .pip import locate_wheel
from .ranged import open_source, read_members, safe_path

_FORMAT = 1


def wheel_files(cache: ToolchainCache, requirement: str, arch: str, folders: Sequence[str]) -> Path:
    """A folder that holds `folders` of the wheel of `requirement` (e.g. "nvidia-cublas==13.1.0.3").

    Raises:
        ToolchainError: no such wheel, it lacks one of the folders or is not as locked, or the index cannot be
            reached.
    """
    name, _, version = requirement.partition("==")

    def fetch(staging: Path) -> None:
        unpack_members(staging, requirement, arch, folders, cache.pins)

    key = f"wheel-files {_FORMAT} {requirement} {arch} {' '.join(folders)}"
    return cache.provide(f"{name}-{version}-{arch}", key, fetch)


def unpack_members(folder: Path, requirement: str, arch: str, wanted: Sequence[str], pins: Pins) -> None:
    """Unpack the files and folders `wanted` of the wheel of `requirement` into `folder`, none executable.

    Raises:
        ToolchainError: as `wheel_files`.
    """
    name, _, version = requirement.partition("==")
    prefixes = tuple(f"{part}/" for part in wanted)
    wheel = locate_wheel(requirement, platform=f"manylinux_2_28_{arch}")
    bar = tqdm(desc=f"{name} {version}", unit="B", unit_scale=True, disable=None, leave=False)
    with open_source(wheel.url) as source, bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        members = dict(read_members(source, lambda m: m in wanted or m.startswith(prefixes), progress))
    pins.check(f"members of {wheel.name}: {' '.join(wanted)}", digest_of_members(members.items()))
    for member, content in members.items():
        path = folder / safe_path(member)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for part in wanted:
        if not (folder / part).exists():
            raise ToolchainError(f"{wheel.url} holds no {part}: correct matrix.toml")
