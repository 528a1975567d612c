"""Make the cache smaller: variants that were used longest ago go first, those in use stay.

A use is known within `USE_PRECISION_S`. A time in the future, from a clock that has been set back since, counts
as now and is written down as now, so that such a variant ages from here on. What was wrongly thought old is
downloaded again; a process that has a variant open holds a lock on it, which no clock changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .cache_folder import files_below
from .locks import is_at, is_locked_by_nobody
from .store import Store
from .variant_store import USE_PRECISION_S

RECENT_S = 3600.0
_INTERRUPTED_S = 24 * 3600.0  # after which nobody is expected to go on with a download


@dataclass(frozen=True)
class StoredVariant:
    """A folder with its size in bytes and when it was last used, in seconds since 1970.

    That of a variant, or of the package of one that was built here.
    """

    path: Path
    size: int
    used: float


@dataclass(frozen=True)
class Collected:
    """What a collection did: variants removed, and kept although the cache is too large, each with its reason.

    `size` is what the variants that are left have in bytes, `leftovers` the number of interrupted downloads removed.
    """

    removed: tuple[StoredVariant, ...]
    kept: tuple[tuple[StoredVariant, str], ...]
    size: int
    leftovers: int


def stored_variants(store: Store) -> list[StoredVariant]:
    """The variants in the cache, fetched or built here, those used longest ago first."""
    found = [
        StoredVariant(path, folder_size(path), path.lstat().st_mtime)
        for path in _present([*store.variants(), *store.builds()])
    ]
    return sorted(found, key=lambda variant: (variant.used, variant.path))


def folder_size(folder: Path) -> int:
    """Bytes of the files below `folder`."""
    return sum(path.lstat().st_size for path in _present(files_below(folder)))


def collect(store: Store, max_size: int) -> Collected:
    """Remove variants until those left have at most `max_size` bytes, or are in use; and what was interrupted.

    Raises:
        CacheError: something cannot be removed.
    """
    with store.cache_errors():
        leftovers = _remove_leftovers(store)
        variants = stored_variants(store)
        size = sum(variant.size for variant in variants)
        removed: list[StoredVariant] = []
        kept: list[tuple[StoredVariant, str]] = []
        for variant in variants:
            if size <= max_size:
                break
            reason = _remove_unused(store, variant)
            if reason is None:
                removed.append(variant)
                size -= variant.size
            else:
                kept.append((variant, reason))
        return Collected(tuple(removed), tuple(kept), size, leftovers)


def _remove_unused(store: Store, variant: StoredVariant) -> str | None:
    """Remove a variant, or say why it stays."""
    if _age(variant.path) < RECENT_S + USE_PRECISION_S:
        return "used within the last hour"
    reason = _remove(store, variant.path, "a running process has it open")
    if reason is None:
        for path in (store.listing(variant.path.name), store.metadata(variant.path.name)):
            path.unlink(missing_ok=True)
    return reason


def _remove_leftovers(store: Store) -> int:
    """What killed processes have left: downloads nobody went on with, small files under way."""
    limits = {"partial/*/*": _INTERRUPTED_S, "tmp/*": RECENT_S}
    old = [
        path for glob, limit in limits.items() for path in store.root.glob(glob) if _youngest(path) >= limit
    ]
    return sum(_remove(store, path, "") is None for path in old)


def _remove(store: Store, folder: Path, reason: str) -> str | None:
    """Remove a folder that no process holds; `reason` if one does."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be removed: {error.strerror}"
    try:
        if not is_locked_by_nobody(descriptor) or not is_at(descriptor, folder):
            return reason
        store.remove(folder)
    except OSError as error:
        return f"cannot be removed: {error.strerror}"
    finally:
        os.close(descriptor)
    return None


def _youngest(folder: Path) -> float:
    """Seconds since the latest change at or below `folder`."""
    return min((_age(path) for path in (folder, *files_below(folder))), default=0.0)


def _age(path: Path) -> float:
    """Seconds since the file was changed; 0, and so from now on, where that is in the future."""
    try:
        age = time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
    if age < 0:
        with suppress(OSError):
            os.utime(path, follow_symlinks=False)
    return max(age, 0.0)


def _present(paths: Iterator[Path] | list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_symlink() or path.exists():  # another process may be removing them
            yield path
