"""Read an archive of `export.py` into a hub: all of it is checked before any of it can be seen.

First the whole archive: each member is where the manifest has it, with its size and SHA-256; each repository is
what git would say of it; each file's content has the file's id. Content goes into the blob store meanwhile, which
shows nobody anything. Then every reference is compared with what is here, and at last each repository is written
in one transaction that compares again. Doing it twice changes nothing; interrupted, it can be begun again.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hub_loader.errors import IntegrityError, RegistryError, UsageError

from .blobs import BlobStore
from .carried import Carried, from_json
from .db import Database
from .export import FORMAT, MANIFEST, Member
from .locks import insert_missing, insert_new, lock_ref
from .mirrored import refuse_change
from .models import Commit, Ref, Repo, RepoMove, TreeEntry
from .names import check_sha256
from .naming import ensure_org
from .store import RepoName, find_repo, tree_row
from .tree import File, blob_hash, entries

_MOST_MANIFEST = 256 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Imported:
    """What an import changed: repositories it created, references it set or moved, and all it read.

    `manifest` is the SHA-256 of the archive's first member.
    """

    created: tuple[str, ...]
    moved: tuple[str, ...]
    repos: int
    blobs: int
    bytes: int
    manifest: str


def carry_in(
    database: Database, blobs: BlobStore, file: Path, *, manifest: str | None = None, force: bool = False
) -> Imported:
    """Import the archive `file`; with `manifest` only the one whose manifest has that SHA-256.

    Raises UsageError if it cannot be read, IntegrityError if it is not what its manifest says, RegistryError if a
    branch here has commits that the archive lacks, or a tag is elsewhere; with `force` those are moved.
    """
    try:
        with file.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            source = _Archive(archive, manifest)
            repos = [from_json(b"".join(source.take(member))) for member in source.of("repos/")]
            _check_names(repos, source.of("repos/"))
            size = _take_blobs(source, blobs, repos)
            source.end()
    except (tarfile.TarError, EOFError) as error:
        raise IntegrityError(f"{file} is no whole archive of `khub registry export`: {error}.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error}.") from None
    blobs.sync()
    with database.read() as session:
        for carried in repos:
            _check_moves(session, carried, force)
    created, moved = [], []
    for carried in repos:
        with database.write() as session:
            is_new, refs = _write(session, carried, force)
        created += [str(carried.repo)] if is_new else []
        moved += [f"{carried.repo} {ref}" for ref in refs]
    count = len(source.of("blobs/"))
    return Imported(tuple(created), tuple(moved), len(repos), count, size, source.digest)


class _Archive:
    """The members of an archive, in the manifest's order and as the manifest describes them."""

    def __init__(self, archive: tarfile.TarFile, digest: str | None) -> None:
        self._archive = archive
        info = self._next(MANIFEST)
        if info.size > _MOST_MANIFEST:
            raise IntegrityError(f"The archive's manifest has {info.size} bytes: it is none.")
        content = b"".join(self._read(info))
        self.digest = hashlib.sha256(content).hexdigest()
        if digest is not None and digest != self.digest:
            raise IntegrityError(f"The archive's manifest has the SHA-256 {self.digest}, not {digest}.")
        self._members = _manifest(content)

    def of(self, folder: str) -> list[Member]:
        """The members whose names begin with `folder`."""
        return [member for member in self._members if member.name.startswith(folder)]

    def take(self, member: Member) -> Iterator[bytes]:
        """The next member, which has to be this one, in pieces; raises IntegrityError before the last is given."""
        info = self._next(member.name)
        if info.size != member.size:
            raise IntegrityError(f"{member.name} has {info.size} bytes in the archive, not {member.size}.")
        digest, last = hashlib.sha256(), b""
        for chunk in self._read(info):
            if last:
                yield last
            digest.update(chunk)
            last = chunk
        if digest.hexdigest() != member.sha256:
            raise IntegrityError(f"{member.name} in the archive is damaged: carry it over again.")
        yield last

    def end(self) -> None:
        """Raises IntegrityError if there is another member."""
        if (more := self._archive.next()) is not None:
            raise IntegrityError(f"The archive has {more.name!r}, which its manifest has not.")

    def _next(self, name: str) -> tarfile.TarInfo:
        info = self._archive.next()
        self._archive.members = []  # type: ignore[attr-defined]  # else it remembers them all
        if info is None:
            raise IntegrityError(f"The archive ends before {name}: carry it over again.")
        if info.name != name or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            raise IntegrityError(f"The archive has {info.name!r} where its manifest has the file {name!r}.")
        return info

    def _read(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        content = self._archive.extractfile(info)
        assert content is not None  # it is a regular file
        left = info.size
        while left > 0 and (chunk := content.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk
        if left:
            raise IntegrityError(f"The archive ends within {info.name}: carry it over again.")


def _manifest(content: bytes) -> list[Member]:
    """Its members: repositories, then content, none twice. Raises IntegrityError."""
    try:
        document: Any = json.loads(content)
        if document["format"] != FORMAT:
            raise IntegrityError(
                f"The archive has format {document['format']!r}, this hub knows {FORMAT}: update kernel-hub."
            )
        members = [Member(**member) for member in document["members"]]
        for member in members:
            check_sha256(member.sha256)
            if type(member.size) is not int or member.size < 0:
                raise ValueError(member)
            if not member.name.startswith("repos/") and member.name != f"blobs/{member.sha256}":
                raise ValueError(member)
        names = [member.name for member in members]
        if len(set(names)) != len(names) or sorted(names, key=lambda name: name[:6] != "repos/") != names:
            raise ValueError("the order of the members")
    except (KeyError, TypeError, ValueError, AttributeError, RegistryError) as error:
        raise IntegrityError(
            f"The archive's manifest is not one of `khub registry export`: {error}."
        ) from None
    return members


def _check_names(repos: list[Carried], members: list[Member]) -> None:
    for carried, member in zip(repos, members, strict=True):
        if member.name != f"repos/{carried.repo}.json":
            raise IntegrityError(f"{member.name} in the archive describes {carried.repo}: export again.")


def _take_blobs(source: _Archive, blobs: BlobStore, repos: list[Carried]) -> int:
    """Keep the content of the repositories' files, all of it and nothing else; returns its bytes."""
    files = {(file.sha256, file.size): set[str]() for each in repos for file in each.files()}
    for each in repos:
        for file in each.files():
            files[file.sha256, file.size] |= set() if file.lfs else {file.oid}
    members = source.of("blobs/")
    if {(member.sha256, member.size) for member in members} != set(files):
        raise IntegrityError("The archive's content is not that of its repositories' files: export again.")
    for member in members:
        chunks = _as_git(source.take(member), member, files[member.sha256, member.size])
        if blobs.keep(member.sha256) == member.size:
            for _ in chunks:
                pass
        else:
            blobs.put(chunks)
    return sum(member.size for member in members)


def _as_git(chunks: Iterator[bytes], member: Member, oids: set[str]) -> Iterator[bytes]:
    """The same pieces; raises IntegrityError if git has another id for them than the files have."""
    digest = blob_hash(member.size)
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if not oids <= {digest.hexdigest()}:
        raise IntegrityError(
            f"{member.name} in the archive is not the file that a commit names: export again."
        )


def _refs(session: Session, repo: RepoName) -> dict[str, str]:
    found = find_repo(session, repo)
    if found is None:
        return {}
    rows = session.execute(select(Ref.name, Ref.commit_oid).where(Ref.repo_id == found.repo_id))
    return dict(rows.all())


def _check_moves(session: Session, carried: Carried, force: bool) -> None:
    """Raises RegistryError if a branch would lose commits or a tag would move, or for a mirrored repository."""
    refuse_change(session, carried.repo)
    here = _refs(session, carried.repo)
    for name, new in carried.refs.items():
        old = here.get(name, new)
        if force or old == new:
            continue
        if name.startswith("tags/") or not carried.follows(new, old):
            raise RegistryError(
                f"{carried.repo} has {name} at {old} here, and the archive's {new} was not made on top of it: "
                "nothing was imported. Take a newer archive, or --force to move it all the same."
            )


def _write(session: Session, carried: Carried, force: bool) -> tuple[bool, list[str]]:
    """Make the repository what the archive says; whether it is new, and the references set or moved."""
    for name in sorted(carried.refs):
        lock_ref(session, carried.repo, name)
    is_new = find_repo(session, carried.repo) is None and _create(session, carried)
    found = find_repo(session, carried.repo)
    assert found is not None
    _check_moves(session, carried, force)
    here = _refs(session, carried.repo)
    for oid, files in sorted(carried.trees.items()):
        _write_tree(session, found.repo_id, oid, files)
    rows = [
        {
            "repo_id": found.repo_id,
            "oid": oid,
            "parent_oid": point.parent,
            "tree_oid": point.tree,
            "author": point.author,
            "message": point.message,
            "created_at": point.time,
        }
        for oid, point in sorted(carried.commits.items())
    ]
    insert_missing(session, Commit, rows)
    moved = [name for name, oid in sorted(carried.refs.items()) if here.get(name) != oid]
    session.execute(delete(Ref).where(Ref.repo_id == found.repo_id, Ref.name.in_(moved)))
    refs = [{"repo_id": found.repo_id, "name": name, "commit_oid": carried.refs[name]} for name in moved]
    insert_missing(session, Ref, refs)
    return is_new, moved


def _write_tree(session: Session, repo_id: int, oid: str, files: Mapping[str, File]) -> None:
    _, listed = entries(files)
    insert_missing(session, TreeEntry, [tree_row(repo_id, oid, entry) for entry in listed])


def _create(session: Session, carried: Carried) -> bool:
    repo = carried.repo
    session.execute(delete(RepoMove).where(RepoMove.org == repo.org, RepoMove.name == repo.name))
    row = {
        "org_id": ensure_org(session, repo.org),
        "name": repo.name,
        "created_at": carried.created_at,
        "private": carried.private,
        "gated": carried.gated,
    }
    return insert_new(session, Repo, row)
