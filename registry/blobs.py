"""Content-addressed files on disk, named by their SHA-256.

A blob appears under its name only when all of its bytes are on the disk: written to a temporary file,
flushed, renamed. `sync` makes the names last as well, once for all that came before it. So whatever the
metadata refers to, written after `sync`, is there after a crash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import bad_request


class BlobStore:
    """The blobs of one data folder; safe to use from several threads."""

    def __init__(self, data: Path) -> None:
        self._blobs = data / "blobs"
        self._temporary = data / "tmp"
        for folder in (self._blobs, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        return self._blobs / sha256

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

    def put(self, chunks: Iterable[bytes | memoryview]) -> str:
        """Keep the content the chunks make up, for good after the next `sync`; returns its SHA-256."""
        digest = hashlib.sha256()
        with self.temporary() as (path, file):
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            self._publish(path, file, digest.hexdigest())
        return digest.hexdigest()

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
        self.sync()

    def _publish(self, path: Path, file: BinaryIO, sha256: str) -> None:
        file.flush()
        if self.size(sha256) != file.tell():  # else it is here already
            os.fsync(file.fileno())
            path.replace(self.path(sha256))

    def sync(self) -> None:
        """Make the names of all blobs put so far survive a power cut; their bytes do already."""
        descriptor = os.open(self._blobs, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def clear_temporary(self) -> None:
        """Remove what interrupted uploads left; only for the one process that receives uploads."""
        for path in self._temporary.iterdir():
            path.unlink()
