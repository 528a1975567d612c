"""Content-addressed files on disk: `blobs/ab/cdef...`, named by their SHA-256.

A blob appears under its name only when all of its bytes are on the disk: written to a temporary file,
flushed, renamed, and the folder flushed too. So whatever the database refers to is there after a crash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import bad_request


class BlobStore:
    """The blobs below one folder; safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        return self._root / sha256[:2] / sha256[2:]

    def size(self, sha256: str) -> int | None:
        """The blob's size in bytes; None if it is not here."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    @contextmanager
    def temporary(self) -> Iterator[tuple[Path, BinaryIO]]:
        """An empty file beside the blobs, open for reading and writing; gone afterwards unless renamed."""
        path = self._temporary / secrets.token_hex(16)
        try:
            with path.open("x+b") as file:
                yield path, file
        finally:
            path.unlink(missing_ok=True)

    def put(self, content: bytes) -> str:
        """Keep `content`; returns its SHA-256. Costs no write when the blob is here already."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.size(sha256) != len(content):
            with self.temporary() as (path, file):
                file.write(content)
                self._publish(path, file, sha256)
        return sha256

    def adopt(self, path: Path, file: BinaryIO, sha256: str, size: int) -> None:
        """Make a written temporary file the blob `sha256`. Raises RequestError 400 if it is not that."""
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        if (digest.hexdigest(), file.tell()) != (sha256, size):
            raise bad_request(
                f"The upload has {file.tell()} bytes with SHA-256 {digest.hexdigest()}, not the announced "
                f"{size} bytes with {sha256}: send the file again."
            )
        self._publish(path, file, sha256)

    def _publish(self, path: Path, file: BinaryIO, sha256: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        target = self.path(sha256)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            _sync_folder(self._root)
        path.replace(target)
        _sync_folder(target.parent)

    def clear_temporary(self) -> None:
        """Remove what interrupted uploads left; only for the one process that receives uploads."""
        for path in self._temporary.iterdir():
            path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
