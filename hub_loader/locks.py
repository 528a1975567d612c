"""Locks between processes, held on files of the cache. The system releases them however their holder ends.

A lock saves work, it is not what makes the cache right: whatever appears there appears by one atomic rename.
So where there is no lock to be had, on a read-only or a network file system, work goes on without.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PATIENCE_S = 15.0  # longer than a connection attempt lasts
_LONGEST_PAUSE_S = 0.1


@contextmanager
def exclusive(path: Path, progress: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Hold the lock file `path`, whose folder exists, as the only process; it is gone afterwards.

    Yields False if the lock could not be had: files cannot be locked there, or for `_PATIENCE_S` the holder
    has kept it while what `progress` returns stayed the same, so that one hung process does not stop all.
    """
    descriptor = _acquire(path, progress)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # the folder's sticky bit, or the whole cache was cleared
                path.unlink()
            os.close(descriptor)


def is_locked_by_nobody(descriptor: int) -> bool:
    """Take the exclusive lock on an open file or folder, if that is possible at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def share(descriptor: int) -> None:
    """Hold the shared lock on an open file or folder for as long as it is open, where there are locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file or folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _acquire(path: Path, progress: Callable[[], object]) -> int | None:
    pause, since, last = 0.005, time.monotonic(), progress()
    while True:
        try:
            descriptor = _open(path)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, path):
                return descriptor
            os.close(descriptor)  # its last holder has removed it
            continue
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                return None
        if (now := progress()) != last:
            since, last = time.monotonic(), now
        elif time.monotonic() - since > _PATIENCE_S:
            return None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _open(path: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:  # another user's: a lock needs no more than reading
        return os.open(path, os.O_RDONLY | flags)
