"""Check a registry from its references to the bytes: every id is computed again, every byte is hashed again.

What is found wrong is said with the repository it concerns. Repairing removes what is in the way of a cure:
damaged content is put aside, so that the next upload of the same content, which would otherwise be told that
it is here already, brings it back. Safe while servers run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timezone

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from .backup import referred
from .blobs import BlobStore
from .db import Database
from .mirrored import may_be_absent
from .models import Commit, Mirror, Org, Ref, Repo, TreeEntry
from .tree import Entry, File, blob_hash, commit_oid, entries, lfs_file


@dataclass(frozen=True)
class Problem:
    """Something wrong: `where` is a repository, or content by its SHA-256; `repaired` what was done about it."""

    where: str
    what: str
    repaired: str | None = None


@dataclass(frozen=True)
class Checked:
    """How much was looked at, and what was wrong with it."""

    repos: int
    commits: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]


@dataclass
class _Content:
    """What a file's bytes turned out to be: git's id of them; None if they are damaged or missing."""

    size: int
    oid: str | None


def fsck(database: Database, blobs: BlobStore, *, repair: bool = False) -> Checked:
    """Check everything; with `repair` put damaged content aside."""
    problems: list[Problem] = []
    with database.read() as session:
        if session.connection().dialect.name == "sqlite":
            for (found,) in session.execute(text("PRAGMA integrity_check")):
                if found != "ok":
                    problems.append(Problem("registry.sqlite", found))
        wanted = referred(session)
        optional = may_be_absent(session)
        users = _users(session)
        names = {repo_id: f"{org}/{name}" for repo_id, org, name in session.execute(_REPOS)}
        for repo_id, name in names.items():
            problems += [Problem(name, what) for what in _check_repo(session, repo_id)]
        commits = session.scalar(select(func.count()).select_from(Commit)) or 0
    size = 0
    for sha256 in sorted(wanted | {name for name, _ in blobs.storage.names()}):
        found = _read(blobs, sha256)
        size += found.size if found else 0
        using = users.get(sha256, {})
        problems += _check_content(blobs, sha256, found, sha256 in wanted - optional, using, names, repair)
    return Checked(len(names), commits, len(wanted), size, tuple(problems))


_REPOS = select(Repo.id, Org.name, Repo.name).join(Org, Org.id == Repo.org_id).order_by(Repo.id)


def _check_repo(session: Session, repo_id: int) -> Iterator[str]:
    commits = {found.oid: found for found in session.scalars(select(Commit).where(Commit.repo_id == repo_id))}
    mirrored = session.get(Mirror, repo_id) is not None
    for name, oid in session.execute(select(Ref.name, Ref.commit_oid).where(Ref.repo_id == repo_id)):
        if oid not in commits and not mirrored:
            yield f"the reference {name} points to the commit {oid}, which is not here"
    for oid, found in commits.items():
        if found.parent_oid is not None and found.parent_oid not in commits:
            yield f"the commit {oid} follows {found.parent_oid}, which is not here"
        if mirrored:  # what else the upstream's commit says is not known here
            continue
        time = int(found.created_at.replace(tzinfo=timezone.utc).timestamp())
        if commit_oid(found.tree_oid, found.parent_oid, found.author, time, found.message) != oid:
            yield f"the commit {oid} says something else than what it was made of"
    for tree_oid in sorted({found.tree_oid for found in commits.values()}):
        if not _tree_is_whole(session, repo_id, tree_oid):
            yield f"the tree {tree_oid} does not have the files it was made of"


def _tree_is_whole(session: Session, repo_id: int, tree_oid: str) -> bool:
    rows = session.scalars(
        select(TreeEntry)
        .where(TreeEntry.repo_id == repo_id, TreeEntry.tree_oid == tree_oid)
        .order_by(TreeEntry.path)
    )
    listed = [
        Entry(row.path, "directory", row.oid)
        if row.sha256 is None or row.size is None
        else Entry(row.path, "file", row.oid, File(row.oid, row.sha256, row.size, row.lfs))
        for row in rows
    ]
    return entries({entry.path: entry.file for entry in listed if entry.file}) == (tree_oid, listed)


def _users(session: Session) -> dict[str, dict[tuple[int, str, int, bool], str]]:
    """For each content, as which files (repository, id, size, LFS) it is used, with a path of each."""
    found: dict[str, dict[tuple[int, str, int, bool], str]] = {}
    columns = (
        TreeEntry.sha256,
        TreeEntry.repo_id,
        TreeEntry.oid,
        TreeEntry.size,
        TreeEntry.lfs,
        TreeEntry.path,
    )
    for sha256, repo_id, oid, size, lfs, path in session.execute(select(*columns)):
        if sha256 is not None and size is not None:
            found.setdefault(sha256, {})[(repo_id, oid, size, lfs)] = path
    return found


def _read(blobs: BlobStore, sha256: str) -> _Content | None:
    """Hash the content twice in one pass, as SHA-256 and as git does; None if it is not here."""
    size = blobs.size(sha256)
    if size is None:
        return None
    digest, git, read = hashlib.sha256(), blob_hash(size), 0
    for chunk in blobs.read(sha256):
        digest.update(chunk)
        git.update(chunk)
        read += len(chunk)
    return _Content(read, git.hexdigest() if digest.hexdigest() == sha256 and read == size else None)


def _check_content(
    blobs: BlobStore,
    sha256: str,
    found: _Content | None,
    wanted: bool,
    using: dict[tuple[int, str, int, bool], str],
    names: dict[int, str],
    repair: bool,
) -> Iterator[Problem]:
    places = sorted(f"{names.get(repo_id, '?')}: {path}" for (repo_id, *_), path in using.items())
    used = f" (used by {'; '.join(places[:5])}{' …' if len(places) > 5 else ''})" if places else ""
    if found is None:
        if wanted:
            yield Problem(sha256, f"the content is not here{used}: upload it again")
        return
    if found.oid is None:
        done = f"put aside as {blobs.storage.quarantine(sha256)}" if repair else None
        yield Problem(sha256, f"the content is damaged{used}: upload it again once it was put aside", done)
        return
    for (repo_id, oid, size, lfs), path in using.items():
        expected = lfs_file(sha256, size).oid if lfs else found.oid
        if (oid, size) != (expected, found.size):
            yield Problem(names.get(repo_id, "?"), f"{path} has another id or size than its content {sha256}")
