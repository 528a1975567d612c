"""Some members of a wheel, by ranged reads: the headers of a library whose wheel is hundreds of megabytes.

Most headers of a release are also those of another one or of another architecture: they are copied from the parts that
the cache has of the same package, where name, size and CRC-32 are those in the wheel's directory. A CRC proves
nothing, so this is done only where the lock has the digest of the whole, and when that is not met after copying,
everything is fetched afresh.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from hub_loader.errors import ToolchainError

from .cache import ToolchainCache
from .pins import digest_of_members
from .pip import locate_wheel
from .ranged import Known, open_source, read_members, safe_path

_FORMAT = 1


def wheel_files(cache: ToolchainCache, requirement: str, arch: str, folders: Sequence[str]) -> Path:
    """A folder that holds `folders` of the wheel of `requirement` (e.g. "nvidia-cublas==13.1.0.3").

    What is fetched is counted in the cache's traffic under the package's name.

    Raises:
        ToolchainError: no such wheel, it lacks one of the folders or is not as locked, or the index cannot be
            reached.
    """
    name, _, version = requirement.partition("==")

    def fetch(staging: Path) -> None:
        unpack_members(staging, requirement, arch, folders, cache)

    key = f"wheel-files {_FORMAT} {requirement} {arch} {' '.join(folders)}"
    return cache.provide(f"{name}-{version}-{arch}", key, fetch)


def unpack_members(
    folder: Path, requirement: str, arch: str, wanted: Sequence[str], cache: ToolchainCache
) -> None:
    """Unpack the files and folders `wanted` of the wheel of `requirement` into `folder`, none executable.

    Raises:
        ToolchainError: as `wheel_files`.
    """
    name, _, version = requirement.partition("==")
    wheel = locate_wheel(requirement, platform=f"manylinux_2_28_{arch}")
    label = f"members of {wheel.name}: {' '.join(wanted)}"
    expected = cache.pins.expected(label)
    copies = LocalCopies([] if expected is None else _relatives(cache, name, version))

    def read(known: Known) -> dict[str, bytes]:
        return _read(wheel.url, wanted, known, cache.traffic.count(name), f"{name} {version}")

    members = read(copies)
    if copies.taken and digest_of_members(members.items()) != expected:
        members = read(LocalCopies([]))
    cache.pins.check(label, digest_of_members(members.items()))
    for member, content in members.items():
        path = folder / safe_path(member)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for part in wanted:
        if not (folder / part).exists():
            raise ToolchainError(f"{wheel.url} holds no {part}: correct matrix.toml")


class LocalCopies:
    """Members found in `folders`, the likeliest first; `taken` is how many were. A `Known` to read members with."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.taken = 0

    def __call__(self, name: str, size: int, crc: int) -> bytes | None:
        for folder in self._folders:
            path = folder / safe_path(name)
            try:
                content = path.read_bytes() if path.stat().st_size == size else None
            except (FileNotFoundError, NotADirectoryError):
                continue  # this release has none, or another process removed the part
            if content is not None and zlib.crc32(content) == crc:
                self.taken += 1
                return content
        return None


def _relatives(cache: ToolchainCache, name: str, version: str) -> list[Path]:
    """The cache's parts of package `name`, in any version, those of `version` first."""
    parts = (path for path in cache.root.glob(f"{name}-*") if path.is_dir())
    return sorted(parts, key=lambda path: (not path.name.startswith(f"{name}-{version}-"), path.name))


def _read(
    url: str, wanted: Sequence[str], known: Known, count: Callable[[int], None], title: str
) -> dict[str, bytes]:
    """The members of a remote wheel that are or lie in `wanted`; those not `known` are fetched."""
    prefixes = tuple(f"{part}/" for part in wanted)
    bar = tqdm(desc=title, unit="B", unit_scale=True, disable=None, leave=False)
    with open_source(url, count) as source, bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return dict(read_members(source, lambda m: m in wanted or m.startswith(prefixes), known, progress))
