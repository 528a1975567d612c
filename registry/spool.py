"""Temporary files of uploads under way: a folder for each process, locked for as long as the process lives.

The system lets go of the lock however a process ends, so what is not locked is left over and can go.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class Spool:
    """The temporary files below `root`; safe to use from several threads, and by several processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own: Path | None = None
        self._making = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def file(self) -> Iterator[tuple[Path, BinaryIO]]:
        """An empty file, open for reading and writing; gone afterwards."""
        path = self._folder() / secrets.token_hex(16)
        try:
            with path.open("x+b") as file:
                yield path, file
        finally:
            path.unlink(missing_ok=True)

    def clear_abandoned(self) -> int:
        """Remove what processes that ended left behind; returns how many files those were."""
        removed = 0
        for path in self._root.iterdir():
            if not path.is_dir():  # written by a program that had one process and no folders
                path.unlink()
                removed += 1
            elif path != self._own and (lock := _lock(path)) is not None:
                removed += len(list(path.iterdir()))
                shutil.rmtree(path)
                os.close(lock)
        return removed

    def _folder(self) -> Path:
        with self._making:
            while self._own is None:
                made = self._root / secrets.token_hex(16)
                made.mkdir()
                # Between the two lines somebody may have taken it for abandoned: then another.
                if _lock(made) is not None and made.exists():
                    self._own = made
        return self._own


def _lock(folder: Path) -> int | None:
    """The descriptor that holds the folder's lock, open until it is closed or the process ends; None if held."""
    with suppress(BlockingIOError, FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        return descriptor
    return None
