"""The body of a hub's answer: read piece by piece, bounded, and held against what a manifest promises."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import DownloadError, IntegrityError
from .manifest import Entry
from .session import http_errors

MAX_JSON_BYTES = 32 << 20
_BLOCK = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


def body(response: Any, what: str) -> bytes:
    """A small body whose size nobody has promised. Raises DownloadError as `chunks`."""
    return b"".join(chunks(response, what, None, MAX_JSON_BYTES))


class TooLongError(DownloadError):
    """More bytes than promised: not a broken connection, so what came is not worth keeping."""


def check(entry: Entry, actual: str, what: str) -> None:
    """Raise IntegrityError unless `actual`, the hash of what the hub sent, is the one of `entry`."""
    if actual != entry.digest:
        raise IntegrityError(
            f"{what}: the hub sent other bytes than its manifest promises, expected {entry.algorithm} "
            f"{entry.digest}, got {actual}: ask the publisher to upload it again"
        )


def chunks(response: Any, what: str, size: int | None, limit: int, start: int = 0) -> Iterator[bytes]:
    """The body piece by piece, after the `start` bytes of it that are there already.

    Raises:
        DownloadError: it has not `size` bytes in all; as TooLongError, it exceeds `limit`.
    """
    received, broken = start, ""
    try:
        for chunk in response.iter_bytes():
            received += len(chunk)
            if received > limit:
                raise TooLongError(
                    f"{what}: expected at most {limit} bytes, the hub sends more: check HF_ENDPOINT"
                )
            yield chunk
    except http_errors() as error:
        broken = f" ({error})"
    if broken or size not in (None, received):
        expected = "the whole body" if size is None else f"{size} bytes"
        raise DownloadError(f"{what}: expected {expected}, got {received} bytes{broken}: try again")


def continues(response: Any, start: int) -> bool:
    """Whether the answer is the file from byte `start` on, rather than all of it or another part."""
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    return response.status_code == 206 and match is not None and int(match[1]) == start


def open_partial(path: Path, size: int) -> BinaryIO:
    """The plain file `path` as an earlier attempt has left it, else a new one; emptied beyond `size` bytes."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError:  # whole and so read-only, but with other bytes; or something else of that name
        path.unlink(missing_ok=True)
        descriptor = os.open(path, flags, 0o644)
    file = os.fdopen(descriptor, "r+b")
    if os.fstat(descriptor).st_size > size:
        file.truncate(0)
    return file


def read_into(digest: Any, file: BinaryIO) -> int:
    """Feed `digest` the whole file and stay at its end; returns its size."""
    while block := file.read(_BLOCK):
        digest.update(block)
    return file.tell()


def is_whole(path: Path, entry: Entry) -> bool:
    """Whether an earlier attempt has finished the file: read-only, and with the bytes of `entry`."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o222 or status.st_size != entry.size:
            return False
        digest = entry.new_hash()
        with path.open("rb") as file:
            read_into(digest, file)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == entry.digest


def finish(file: BinaryIO) -> None:
    """Make a file read-only and its bytes survive a power cut."""
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())
