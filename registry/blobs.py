"""Content-addressed content, named by its SHA-256, in a local folder or an S3 bucket.

What is received goes to a temporary file of this machine, is hashed, and only then published under its name,
as a whole and once. `sync` makes the names last as well, once for all that came before it. So whatever the
metadata refers to, written after `sync`, is there after a crash.

Content that nothing refers to is collected later (`collect.py`). Who finds that content is here already and
means to refer to it says so first: `touch`, given by the metadata's side, keeps it from being collected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from .errors import bad_request
from .local_storage import LocalStorage
from .spool import Spool


class Storage(Protocol):
    """Where content is: `local_storage` and `object_storage` say what each of these does."""

    def check(self) -> None: ...
    def size(self, sha256: str) -> int | None: ...
    def publish(self, file: Path, sha256: str, size: int) -> None: ...
    def sync(self) -> None: ...
    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]: ...
    def signed_url(self, sha256: str) -> str | None: ...
    def delete(self, sha256: str) -> None: ...
    def quarantine(self, sha256: str) -> str: ...
    def names(self) -> Iterator[tuple[str, int]]: ...
    def clear_abandoned(self, seconds: float) -> int: ...


class BlobStore:
    """The blobs of one registry; safe to use from several threads, and by several processes."""

    def __init__(
        self,
        data: Path,
        url: str | None = None,
        *,
        touch: Callable[[str], None] = lambda sha256: None,
    ) -> None:
        """Open those at `url`, or of the data folder. Raises RegistryError, UsageError."""
        self._spool = Spool(data / "tmp")
        self._touch = touch
        self.storage = open_storage(data, url)

    def size(self, sha256: str) -> int | None:
        """The blob's size in bytes; None if it is not here."""
        return self.storage.size(sha256)

    def keep(self, sha256: str) -> int | None:
        """What `size` returns; if it is here, it stays for as long as an upload may take."""
        self._touch(sha256)
        return self.storage.size(sha256)

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The blob's bytes from `start` up to `stop`, in pieces. Raises FileNotFoundError."""
        return self.storage.read(sha256, start, stop)

    def local_path(self, sha256: str) -> Path | None:
        """The blob's file, where blobs are files of this machine."""
        return self.storage.path(sha256) if isinstance(self.storage, LocalStorage) else None

    def temporary(self) -> AbstractContextManager[tuple[Path, BinaryIO]]:
        """An empty file on the blobs' disk, open for reading and writing; gone afterwards."""
        return self._spool.file()

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
        self._touch(sha256)
        self.storage.publish(path, sha256, file.tell())

    def sync(self) -> None:
        """Make the names of all blobs put so far survive a power cut; their bytes do already."""
        self.storage.sync()

    def clear_temporary(self) -> int:
        """Remove what interrupted uploads of processes that ended left; returns how many files."""
        return self._spool.clear_abandoned()


def open_storage(data: Path, url: str | None) -> Storage:
    """The storage at `url`, or the folder of `data`. Raises RegistryError, UsageError."""
    if url is None:
        return LocalStorage(data)
    from .object_storage import ObjectStorage  # its library loads only where it is used

    return ObjectStorage(url)
