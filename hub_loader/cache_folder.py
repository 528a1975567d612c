"""The cache as a folder: locks, files that appear whole, permissions that a group can share, and its errors."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CacheError
from .locks import exclusive

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger("hub_loader")

_warned: set[Path] = set()


class CacheFolder:
    """A folder shared between processes and users, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def lock(self, name: str, progress: Callable[[], object] = lambda: None) -> Iterator[bool]:
        """Hold the lock `name`, as `exclusive` does; False where it cannot be had."""
        path = self.root / "locks" / hashlib.sha256(name.encode()).hexdigest()
        with suppress(OSError):  # a read-only cache: what is in it can be used all the same
            self.make_folder(path.parent)
        with exclusive(path, progress) as held:
            yield held

    def clear(self) -> None:
        """Remove everything. Kernels loaded by running processes keep working."""
        with self.cache_errors():
            if self.root.exists():
                shutil.rmtree(self.root)

    def make_folder(self, path: Path) -> None:
        """Make `path` and what is missing above it, with the permissions of the cache's own folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        mode, missing = self.root.stat().st_mode & 0o7777, []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            try:
                folder.mkdir()
                folder.chmod(mode)
            except FileExistsError:
                if not folder.is_dir():
                    raise

    def write(self, path: Path, data: bytes) -> None:
        """Keep `data`. Where the cache is read-only or full, that is said once: it will be asked for again."""
        try:
            with self.temporary_folder() as folder:
                self.make_folder(path.parent)
                temporary = folder / path.name
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fchmod(file.fileno(), self.root.stat().st_mode & 0o664)
                    os.fsync(file.fileno())
                temporary.replace(path)
        except OSError as error:
            if error.errno not in (*_NOT_WRITABLE, *_FULL):
                raise self._error(error) from None
            if self.root not in _warned:
                _warned.add(self.root)
                logger.warning("%s; until then every process asks the hub again", self._error(error))

    @contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        parent = self.root / "tmp"
        self.make_folder(parent)
        with tempfile.TemporaryDirectory(dir=parent) as name:
            yield Path(name)

    @contextmanager
    def cache_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> CacheError:
        cure = "set KERNELS_CACHE to another folder"
        if error.errno in _NOT_WRITABLE:
            cure = f"have its owner fetch the kernel (`khub get`), or {cure}"
        elif error.errno in _FULL:
            cure = f"free some space (`khub cache gc --max-size SIZE`), or {cure}"
        return CacheError(f"cannot write the cache {self.root}: {error}: {cure}")


def read(path: Path) -> bytes | None:
    """The bytes of a file of the cache, None if there is none. Raises CacheError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(error) from None


def files_below(folder: Path) -> Iterator[Path]:
    """The files below `folder`, of which other processes may rename or remove any part meanwhile."""
    for current, _, names in os.walk(folder):
        for name in names:
            yield Path(current, name)


def unreadable(error: OSError) -> CacheError:
    return CacheError(f"cannot read the cache: {error}: set KERNELS_CACHE to another folder")


@contextmanager
def scratch_folder(cache: Path, prefix: str) -> Iterator[Path]:
    """A folder inside `cache` that is gone afterwards; what is finished in it can be renamed into place.

    Raises:
        CacheError: the cache cannot be written.
    """
    parent = cache / "tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=parent)
    except OSError as error:
        raise CacheError(
            f"cannot write the cache {cache}: {error}; set KERNELS_CACHE to another folder"
        ) from None
    with folder as name:
        yield Path(name)
