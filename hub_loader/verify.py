"""Prove a variant's folder: exactly the files its manifest names, each with the bytes it promises.

What is proven is handed on, not read again: small files as bytes, native libraries as the open descriptor
that was hashed. So the bytes verified are the bytes that run, whatever happens to the folder afterwards.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .errors import IntegrityError, InvalidKernelError
from .manifest import METADATA_NAME, IndexedVariant, Metadata, parse_metadata, sha256_hex

_BLOCK = 1 << 20
_NATIVE_SUFFIXES = (".so", ".dylib")


@dataclass(frozen=True)
class VerifiedPackage:
    """A variant proven against its manifest.

    `digest` is the SHA-256 (hex) of metadata.json; `contents` holds the bytes of each file that is not native
    by its path in `folder`, `natives` the descriptor, open for reading, of each that is.
    """

    folder: Path
    metadata: Metadata
    digest: str
    contents: Mapping[str, bytes]
    natives: Mapping[str, int]

    def close(self) -> None:
        """Close the descriptors; only for a package that was not bound."""
        for descriptor in self.natives.values():
            os.close(descriptor)


def verify_package(folder: Path, *, indexed: IndexedVariant | None, cure: str) -> VerifiedPackage:
    """Read and prove the variant in `folder`.

    Args:
        folder: the variant's folder, with metadata.json.
        indexed: what index.json says of the variant; None where there is none, and metadata.json is trusted.
        cure: what to do about a corrupt folder, the end of each error message.

    Raises:
        IntegrityError: a file is missing, changed, not a plain file, or not in the manifest.
        InvalidKernelError: metadata.json is malformed, has no digest, or contradicts index.json.
    """
    found = _files(folder, cure)
    if METADATA_NAME not in found:
        raise IntegrityError(f"{folder / METADATA_NAME} is missing: {cure}")
    data = _read(folder / METADATA_NAME, cure)
    digest = sha256_hex(data)
    if indexed is not None:
        _check(folder / METADATA_NAME, indexed.metadata.sha256, digest, cure)
    metadata = parse_metadata(data, origin=str(folder / METADATA_NAME))
    if indexed is not None:
        check_agreement(metadata, indexed, str(folder / METADATA_NAME))
    if metadata.digest is None:
        raise InvalidKernelError(
            f"{folder / METADATA_NAME} has no digest to prove its files: ask the publisher to rebuild it"
        )
    for path in sorted(found - metadata.digest.keys() - {METADATA_NAME}):
        raise IntegrityError(f"{folder / path} is not in the manifest: {cure}")
    for path in sorted(metadata.digest.keys() - found):
        raise IntegrityError(f"{folder / path} is missing: {cure}")
    contents, natives = {METADATA_NAME: data}, {}
    with ExitStack() as opened:
        for path, expected in metadata.digest.items():
            if path.endswith(_NATIVE_SUFFIXES):
                natives[path] = _open(folder / path, cure)
                opened.callback(os.close, natives[path])
                actual = _hash(natives[path])
            else:
                contents[path] = _read(folder / path, cure)
                actual = sha256_hex(contents[path])
            _check(folder / path, expected, actual, cure)
        opened.pop_all()
    return VerifiedPackage(folder, metadata, digest, contents, natives)


def check_agreement(metadata: Metadata, variant: IndexedVariant, origin: str) -> None:
    """Raise InvalidKernelError unless metadata.json says what index.json says of the variant."""
    files = {path: entry.sha256 for path, entry in variant.files.items()}
    for what, own, indexed in (
        ("id", metadata.id, variant.id),
        ("backend", metadata.backend, variant.backend),
        ("digest", metadata.digest, files),
    ):
        if own != indexed:
            raise InvalidKernelError(
                f"{origin}: its {what} is not what index.json says: ask the publisher to rebuild"
            )


def _check(path: Path, expected: str, actual: str, cure: str) -> None:
    if actual != expected:
        raise IntegrityError(f"{path} is corrupt: expected sha256 {expected}, got {actual}: {cure}")


def _files(folder: Path, cure: str) -> set[str]:
    """Every file below `folder` by relative path; an empty folder counts as one, for no manifest has it."""
    found: set[str] = set()

    def walk(current: Path, prefix: str) -> None:
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            raise IntegrityError(f"{current} cannot be read ({error.strerror}): {cure}") from None
        if prefix and not entries:
            found.add(prefix.rstrip("/"))
        for entry in entries:
            if entry.is_symlink():
                raise IntegrityError(f"{entry.path} is a symbolic link, and packages have none: {cure}")
            if entry.is_dir():
                walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                found.add(prefix + entry.name)

    walk(folder, "")
    return found


def _open(path: Path, cure: str) -> int:
    """A descriptor of the plain file `path`. O_NONBLOCK: opening a FIFO must not wait for a writer."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error.strerror}): {cure}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntegrityError(f"{path} is not a plain file: {cure}")
    return descriptor


def _read(path: Path, cure: str) -> bytes:
    with os.fdopen(_open(path, cure), "rb") as file:
        return file.read()


def _hash(descriptor: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, _BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()
