"""Variants on disk by content: complete or absent, in use or not, added by one process at a time."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .cache_folder import CacheFolder, files_below, unreadable
from .errors import IntegrityError, InvalidKernelError
from .locks import is_at, share

USE_PRECISION_S = 300.0  # a use is written down if the last one is older

# The open folder of each variant that this process has used, with the shared lock on it.
_in_use: dict[Path, int] = {}
_in_use_lock = threading.Lock()


class VariantStore(CacheFolder):
    """The variants of the cache, by key."""

    def variant(self, digest: str) -> Path:
        """The folder of the variant with the key `digest` (hex); it may not exist."""
        return self.root / "variants" / digest

    def variants(self) -> list[Path]:
        """The folders of all variants in the cache, by digest."""
        folder = self.root / "variants"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def use_variant(self, key: str) -> bool:
        """Whether the variant is there; if so, it counts as used now and stays for the life of this process.

        Raises:
            CacheError: its folder cannot be read.
        """
        return self.use_folder(self.variant(key))

    def builds(self) -> list[Path]:
        """The packages in the cache that were built from source here."""
        folder = self.root / "builds"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def use_folder(self, folder: Path) -> bool:
        """As `use_variant`, of a variant or a build."""
        with _in_use_lock:
            descriptor = _in_use.get(folder)
            if descriptor is None or not is_at(descriptor, folder):
                descriptor = self._open_folder(folder)
                if descriptor is None:
                    return False
                share(descriptor)
                if not is_at(descriptor, folder):  # collected a moment ago
                    os.close(descriptor)
                    return False
                if (old := _in_use.pop(folder, None)) is not None:
                    os.close(old)
                _in_use[folder] = descriptor
            if not 0 <= time.time() - os.fstat(descriptor).st_mtime < USE_PRECISION_S:
                with suppress(OSError):  # a cache of another user, or read-only
                    os.utime(descriptor)
        return True

    @contextmanager
    def adding_variant(self, key: str) -> Iterator[Path | None]:
        """A folder to fill, which becomes `variant(key)` if the block ends well; None if the variant is there.

        One process at a time fills it. It may hold what an interrupted attempt has left; after an
        IntegrityError or InvalidKernelError it is gone, after any other it stays for the next attempt.
        """
        with self.lock(key, lambda: self._partial_sizes(key)) as is_alone:
            if self.use_variant(key):
                yield None
                return
            with self.cache_errors(), self._partial(key, is_alone) as content:
                try:
                    yield content
                except (IntegrityError, InvalidKernelError):
                    shutil.rmtree(content)
                    raise
                self._adopt(content, key)
            self.use_variant(key)

    def remove(self, folder: Path) -> None:
        """Remove a folder of the cache, which is gone or whole for everybody else at any moment. Raises OSError."""
        with self.temporary_folder() as trash:
            folder.rename(trash / folder.name)

    def _adopt(self, content: Path, key: str) -> None:
        for path in (content, *(p for p in content.rglob("*") if p.is_dir())):
            _sync_folder(path)
        target = self.variant(key)
        self.make_folder(target.parent)
        os.utime(content)
        try:
            content.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise a process that could not lock was faster
                raise
            shutil.rmtree(content)
        _sync_folder(target.parent)

    @contextmanager
    def _partial(self, key: str, is_alone: bool) -> Iterator[Path]:
        if not is_alone:
            with self.temporary_folder() as folder:
                self.make_folder(folder / key)
                yield folder / key
            return
        own = self.root / "partial" / str(os.getuid())  # nobody can go on with another user's files
        self.make_folder(own / key)
        yield own / key

    def _partial_sizes(self, key: str) -> list[int]:
        """What changes while a process fetches the variant."""
        sizes = []
        for folder in (self.root / "partial").glob(f"*/{key}"):
            for path in files_below(folder):
                with suppress(OSError):
                    sizes.append(path.lstat().st_size)
        return sizes

    def _open_folder(self, folder: Path) -> int | None:
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(error) from None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
