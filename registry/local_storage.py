"""Content in a local folder: one file for each, named by its SHA-256.

A name appears when all of its bytes are on the disk, and for the first writer alone (`link`). This is not
obstore's local folder, which answers before the disk has the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .names import check_sha256

_CHUNK = 1 << 20


class LocalStorage:
    """The folder `blobs` of a data folder."""

    def __init__(self, data: Path) -> None:
        self._blobs = data / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the content is, or would be."""
        return self._blobs / check_sha256(sha256)

    def check(self) -> None:
        """Nothing, if content can be read and written. Raises OSError."""
        if not os.access(self._blobs, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(f"{self._blobs} is not there, or not this server's to read and write")

    def size(self, sha256: str) -> int | None:
        """Its size in bytes; None if it is not here."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def publish(self, file: Path, sha256: str, size: int) -> None:
        """Make the file, of the same disk and complete, the content `sha256`, unless that is here."""
        if self.size(sha256) == size:
            return
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(file, self.path(sha256))
        except FileExistsError:
            if self.size(sha256) != size:  # what a disk error left: what comes is right
                file.replace(self.path(sha256))

    def sync(self) -> None:
        """Make the names published so far survive a power cut; their bytes do already."""
        descriptor = os.open(self._blobs, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, in pieces. Raises FileNotFoundError."""
        with self.path(sha256).open("rb") as file:
            file.seek(start)
            left = os.fstat(file.fileno()).st_size - start if stop is None else stop - start
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def signed_url(self, sha256: str) -> str | None:
        """None: only this server reads the folder."""
        return None

    def delete(self, sha256: str) -> None:
        """Remove it; it need not be here."""
        self.path(sha256).unlink(missing_ok=True)

    def quarantine(self, sha256: str) -> str:
        """Take content that is damaged out of the way; returns where it is kept."""
        kept = self._blobs.parent / "damaged" / sha256
        kept.parent.mkdir(exist_ok=True)
        self.path(sha256).replace(kept)
        return str(kept)

    def names(self) -> Iterator[tuple[str, int]]:
        """The SHA-256 and size in bytes of everything here."""
        with os.scandir(self._blobs) as entries:
            for entry in entries:
                yield entry.name, entry.stat().st_size

    def clear_abandoned(self, seconds: float) -> int:
        """Nothing to do: uploads under way are in the spool."""
        return 0
