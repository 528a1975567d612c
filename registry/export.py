"""Write repositories to one archive that carries them to a hub that this one cannot reach.

A tar archive without compression: `manifest.json` first (format, time, and of every other member its name,
SHA-256 and size, in their order), `repos/<org>/<name>.json` (`carried.py`), `blobs/<SHA-256>`. Who has the
SHA-256 of the manifest can tell that nothing of the archive was changed. Tokens, members and pull requests
stay behind; signatures are files of the commits and come along.

Another kind of member, such as metadata of a trust repository, gets a folder of its own here, a branch in
`carry_in.py`, and a higher FORMAT: importers of today refuse what they do not know.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from hub_loader.errors import IntegrityError, UsageError

from .blobs import BlobStore
from .carried import Carried, Point, to_json
from .db import Database
from .mirrored import origin_of
from .models import Commit, Mirror, Org, Ref, Repo, TreeEntry
from .names import check_org, check_repo_name
from .store import RepoName, require_repo
from .tree import File

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Member:
    """A member of the archive after the manifest."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Exported:
    """What an archive holds; `manifest` is the SHA-256 of its first member."""

    repos: tuple[str, ...]
    commits: int
    blobs: int
    bytes: int
    manifest: str


def export(database: Database, blobs: BlobStore, file: Path, repos: Sequence[str], now: datetime) -> Exported:
    """Write the repositories, all for none named, to `file`, which must be new; it appears when it is complete.

    Raises UsageError, RequestError 404 for an unknown repository, IntegrityError for missing or damaged content.
    """
    if file.exists():
        raise UsageError(f"{file} exists already: name a new file.")
    with database.read() as session:
        names = sorted({parse(name) for name in repos} or _all(session), key=str)
        carried = [read_repo(session, name) for name in names]
    documents = {f"repos/{found.repo}.json": to_json(found) for found in carried}
    content = {found.sha256: found.size for each in carried for found in each.files()}
    members = [Member(name, hashlib.sha256(text).hexdigest(), len(text)) for name, text in documents.items()]
    members += [Member(f"blobs/{sha256}", sha256, size) for sha256, size in sorted(content.items())]
    manifest = json.dumps(
        {"format": FORMAT, "made": now.isoformat(), "members": [asdict(member) for member in members]}
    ).encode()
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
    return Exported(tuple(map(str, names)), commits, len(content), sum(content.values()), digest)


def parse(name: str) -> RepoName:
    """The repository `org/name`. Raises RequestError 400."""
    org, _, short = name.partition("/")
    return RepoName(check_org(org), check_repo_name(short))


def _all(session: Session) -> set[RepoName]:
    mirrored = Repo.id.in_(select(Mirror.repo_id))
    rows = session.execute(select(Org.name, Repo.name).join(Repo, Repo.org_id == Org.id).where(~mirrored))
    return {RepoName(org, name) for org, name in rows}


def read_repo(session: Session, repo: RepoName) -> Carried:
    """The repository's branches and tags, the commits they lead to, and those commits' files."""
    found = require_repo(session, repo)
    if (origin := origin_of(session, repo)) is not None:
        raise UsageError(f"{repo} is a copy of {origin.upstream}/{repo}: export it there.")
    query = select(Ref.name, Ref.commit_oid).where(Ref.repo_id == found.repo_id).order_by(Ref.name)
    wanted = query.where(or_(Ref.name.startswith("heads/"), Ref.name.startswith("tags/")))
    refs = dict(session.execute(wanted).all())
    commits: dict[str, Point] = {}
    for head in refs.values():
        at: str | None = head
        while at is not None and at not in commits:
            row = session.get(Commit, (found.repo_id, at))
            if row is None:
                raise IntegrityError(f"{repo} lacks the commit {at}: `khub registry fsck` says more.")
            commits[at] = Point(row.parent_oid, row.tree_oid, row.author, row.message, row.created_at)
            at = row.parent_oid
    trees = {oid: _files(session, found.repo_id, oid) for oid in {point.tree for point in commits.values()}}
    return Carried(repo, found.private, found.gated, found.created_at, refs, commits, trees)


def _files(session: Session, repo_id: int, tree: str) -> dict[str, File]:
    columns = (TreeEntry.path, TreeEntry.oid, TreeEntry.sha256, TreeEntry.size, TreeEntry.lfs)
    rows = session.execute(
        select(*columns)
        .where(TreeEntry.repo_id == repo_id, TreeEntry.tree_oid == tree)
        .order_by(TreeEntry.path)
    )
    return {
        path: File(oid, sha256, size, lfs)
        for path, oid, sha256, size, lfs in rows
        if sha256 is not None and size is not None
    }


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
