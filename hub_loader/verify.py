"""Prove a variant's folder: exactly the files its manifest names, each with the bytes it promises.

What is proven is handed on, not read again: small files as bytes, native libraries of the cache as a sealed
copy in memory that was hashed. So the bytes verified are the bytes that run, whatever happens to the folder
afterwards. A library of a user's own folder, or one too large to copy (sealed.py), is handed on as the open
descriptor that was hashed: replacing the file changes nothing then, writing into it would.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from .errors import IntegrityError, InvalidKernelError
from .listing import SIGNATURE_NAME, ListedVariant
from .manifest import METADATA_NAME, Entry, IndexedVariant, Metadata, parse_metadata, sha256_hex
from .record import Record
from .sealed import sealed_copy

_BLOCK = 1 << 20
_NATIVE_SUFFIXES = (".so", ".dylib")


class VerifiedPackage(Record):
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


def verify_package(
    folder: Path,
    *,
    indexed: IndexedVariant | ListedVariant | None,
    cure: str,
    is_own: bool = False,
) -> VerifiedPackage:
    """Read and prove the variant in `folder`.

    Args:
        folder: the variant's folder, with metadata.json.
        indexed: what index.json or the repository's tree says of the variant; None where there is neither,
            and metadata.json is trusted.
        cure: what to do about a corrupt folder, the end of each error message.
        is_own: a folder in which a user works, not the cache. `__pycache__`, which another program's import
            leaves behind, is passed over (bytecode is never read either way), and libraries are opened in
            place, where profilers and debuggers find them.

    Raises:
        IntegrityError: a file is missing, changed, not a plain file, or not in the manifest.
        InvalidKernelError: metadata.json is malformed, or contradicts what was indexed; or nothing but
            metadata.json is at hand and it has no digest.
    """
    found = _files(folder, cure, is_own)
    origin = folder / METADATA_NAME
    if METADATA_NAME not in found:
        raise IntegrityError(f"{origin} is missing: {cure}")
    data = _read(origin, cure)
    if indexed is not None:
        _check(origin, [indexed.metadata], [data], cure)
    metadata = parse_metadata(data, origin=str(origin))
    if indexed is not None:
        check_agreement(metadata, indexed, str(origin))
    expected = _expected(metadata, indexed, str(origin))
    for path in sorted(found - expected.keys() - {METADATA_NAME}):
        raise IntegrityError(f"{folder / path} is not in the manifest: {cure}")
    for path in sorted(expected.keys() - found):
        raise IntegrityError(f"{folder / path} is missing: {cure}")
    contents, natives = _prove(folder, expected, cure, seals=not is_own)
    return VerifiedPackage(folder, metadata, sha256_hex(data), {METADATA_NAME: data, **contents}, natives)


def check_agreement(metadata: Metadata, variant: IndexedVariant | ListedVariant, origin: str) -> None:
    """Raise InvalidKernelError unless metadata.json says what index.json, or the tree, says of the variant."""
    if isinstance(variant, ListedVariant):
        _check_listed(metadata, variant, origin)
        return
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


def _check_listed(metadata: Metadata, variant: ListedVariant, origin: str) -> None:
    """The digest, where there is one, covers exactly the files of the tree; the signature is beside it."""
    if metadata.digest is None:
        return
    for path in sorted(metadata.digest.keys() ^ (variant.files.keys() - {SIGNATURE_NAME})):
        where = "its digest" if path in variant.files else "the repository"
        raise InvalidKernelError(f"{origin}: {path!r} is not in {where}: ask the publisher to rebuild")


def _expected(
    metadata: Metadata, indexed: IndexedVariant | ListedVariant | None, origin: str
) -> dict[str, list[Entry | str]]:
    """The proofs of each file but metadata.json: its entry in the index, its SHA-256 in metadata.json."""
    if metadata.digest is None and indexed is None:
        raise InvalidKernelError(
            f"{origin} has no digest to prove its files: ask the publisher to rebuild it"
        )
    expected: dict[str, list[Entry | str]] = {path: [sha] for path, sha in (metadata.digest or {}).items()}
    if isinstance(indexed, ListedVariant):
        for path, entry in indexed.files.items():
            expected.setdefault(path, []).append(entry)
    return expected


def _prove(
    folder: Path, expected: Mapping[str, Iterable[Entry | str]], cure: str, *, seals: bool
) -> tuple[dict[str, bytes], dict[str, int]]:
    """The bytes of each file that is not native, the descriptor of each that is; all held against their proofs."""
    contents: dict[str, bytes] = {}
    natives: dict[str, int] = {}
    with ExitStack() as opened:
        for path, proofs in expected.items():
            if path.endswith(_NATIVE_SUFFIXES):
                natives[path] = _open_native(folder / path, cure, seals)
                opened.callback(os.close, natives[path])
                _check(folder / path, proofs, _blocks(natives[path]), cure)
            else:
                contents[path] = _read(folder / path, cure)
                _check(folder / path, proofs, [contents[path]], cure)
        opened.pop_all()
    return contents, natives


def _check(path: Path, proofs: Iterable[Entry | str], blocks: Iterable[bytes], cure: str) -> None:
    """Hold the bytes against each proof: an entry, or a SHA-256 alone. One pass over `blocks`."""
    hashes = [
        (hashlib.sha256(), proof, "sha256")
        if isinstance(proof, str)
        else (proof.new_hash(), proof.digest, proof.algorithm)
        for proof in proofs
    ]
    for block in blocks:
        for digest, _, _ in hashes:
            digest.update(block)
    for digest, wanted, algorithm in hashes:
        if (actual := digest.hexdigest()) != wanted:
            raise IntegrityError(f"{path} is corrupt: expected {algorithm} {wanted}, got {actual}: {cure}")


def _files(folder: Path, cure: str, ignores_bytecode: bool) -> set[str]:
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
                if ignores_bytecode and entry.name == "__pycache__":
                    continue
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


def _open_native(path: Path, cure: str, seals: bool) -> int:
    descriptor = _open(path, cure)
    copy = sealed_copy(descriptor, path.name) if seals else None
    if copy is None:
        return descriptor
    os.close(descriptor)
    return copy


def _read(path: Path, cure: str) -> bytes:
    with os.fdopen(_open(path, cure), "rb") as file:
        return file.read()


def _blocks(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        yield block
        offset += len(block)
