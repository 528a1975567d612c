"""Write repositories to one archive that carries them to a hub that this one cannot reach.

A tar archive without compression: `manifest.json` first (format, time, and of every other member its name,
SHA-256 and size, in their order), `repos/<org>/<name>.json` (`carried.py`), `tuf/<org>.json` (what the
organization's publishers have signed as its list, `tuf/carry.py`), `blobs/<SHA-256>`. Who has the
SHA-256 of the manifest can tell that nothing of the archive was changed. Tokens, members, pull requests and every
private key stay behind; signatures are files of the commits and come along.

Another kind of member gets a folder of its own here, a branch in `carry_in.py`, and a higher format: importers of
today refuse what they do not know. Format 2 has lists or copies, 1 has neither.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from hub_loader.errors import IntegrityError, UsageError

from .blobs import BlobStore
from .carried import to_json
from .carried_rows import all_repos, read_repo, without_missing
from .db import Database
from .names import RepoName, check_org, check_repo_name
from .tuf.carry import read_lists

FORMATS = (1, 2)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Member:
    """A member of the archive after the manifest."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Exported:
    """What an archive holds; `manifest` is the SHA-256 of its first member.

    `lists` are the organizations whose TUF list it carries.
    """

    repos: tuple[str, ...]
    commits: int
    blobs: int
    bytes: int
    manifest: str
    lists: tuple[str, ...] = ()


def export(database: Database, blobs: BlobStore, file: Path, repos: Sequence[str], now: datetime) -> Exported:
    """Write the repositories, all for none named, to `file`, which must be new; it appears when it is complete.

    Raises UsageError, RequestError 404 for an unknown repository, IntegrityError for missing or damaged content.
    """
    if file.exists():
        raise UsageError(f"{file} exists already: name a new file.")
    with database.read() as session:
        names = sorted({parse(name) for name in repos} or all_repos(session), key=str)
        carried = [without_missing(read_repo(session, name), blobs) for name in names]
        lists = read_lists(session, sorted({name.org for name in names}))
    documents = {f"repos/{found.repo}.json": to_json(found) for found in carried}
    documents |= {f"tuf/{org}.json": data for org, data in lists.items()}
    content = {found.sha256: found.size for each in carried for found in each.files()}
    manifest = _manifest(documents, content, now, any(found.copied for found in carried) or bool(lists))
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it may have private ones
        with os.fdopen(descriptor, "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, MANIFEST, len(manifest), io.BytesIO(manifest))
                for name, text in documents.items():
                    _add(archive, name, len(text), io.BytesIO(text))
                for sha256, size in sorted(content.items()):
                    _add(archive, f"blobs/{sha256}", size, _file(_checked(blobs, sha256, size)))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    commits = sum(len(found.commits) for found in carried)
    digest = hashlib.sha256(manifest).hexdigest()
    return Exported(
        tuple(map(str, names)), commits, len(content), sum(content.values()), digest, tuple(lists)
    )


def parse(name: str) -> RepoName:
    """The repository `org/name`. Raises RequestError 400."""
    org, _, short = name.partition("/")
    return RepoName(check_org(org), check_repo_name(short))


def _manifest(
    documents: Mapping[str, bytes], content: Mapping[str, int], now: datetime, is_newer: bool
) -> bytes:
    members = [Member(name, hashlib.sha256(text).hexdigest(), len(text)) for name, text in documents.items()]
    members += [Member(f"blobs/{sha256}", sha256, size) for sha256, size in sorted(content.items())]
    return json.dumps(
        {
            "format": FORMATS[is_newer],
            "made": now.isoformat(),
            "members": [asdict(member) for member in members],
        }
    ).encode()


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    archive.addfile(info, content)


def _file(pieces: Iterator[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Pieces(pieces), buffer_size=1 << 20)


class _Pieces(io.RawIOBase):
    """Pieces as a file, for `TarFile.addfile`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and (piece := next(self._pieces, None)) is not None:
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _checked(blobs: BlobStore, sha256: str, size: int) -> Iterator[bytes]:
    """The content in pieces, the last of them only if all of it is what its name and size say."""
    digest, left, last = hashlib.sha256(), size, b""
    try:
        for chunk in blobs.read(sha256):
            if last:
                yield last
            digest.update(chunk)
            left -= len(chunk)
            last = chunk
    except FileNotFoundError:
        left = -1
    if left or digest.hexdigest() != sha256:
        raise IntegrityError(
            f"The content {sha256} is missing or damaged: `khub registry fsck` says what uses it."
        )
    yield last
