"""What the tables say of repositories that are copies of an upstream hub's.

Until a file is fetched, a stand-in made of git's id of it has the place of its SHA-256: 24 zeros and the id. No
content has such a SHA-256, as nobody can find one that begins with 96 zero bits. An upstream lists the SHA-256 of
its LFS files, but it may know that of a file that somebody keeps private here: what it lists is a claim, told to
who asks for the listing, and leads to no content before the upstream has sent that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from .db import Database
from .errors import RequestError
from .models import Mirror, MirrorClaim, Org, Repo, TreeEntry
from .names import RepoName
from .tree import Entry, File

_AWAITED = "0" * 24


@dataclass(frozen=True)
class Origin:
    """Where a mirrored repository comes from: the hub's address and its word for the type, and when it was asked."""

    repo_id: int
    upstream: str
    kind: str
    checked_at: datetime


def awaited(oid: str) -> str:
    """The stand-in for the SHA-256 of the file that git calls `oid`."""
    return _AWAITED + oid


def is_awaited(sha256: str) -> bool:
    """Whether this is a stand-in."""
    return sha256.startswith(_AWAITED)


def origin_of(session: Session, repo: RepoName) -> Origin | None:
    """Where the repository is from; None for one of this hub, or none at all."""
    row = session.execute(
        select(Mirror.repo_id, Mirror.upstream, Mirror.kind, Mirror.checked_at)
        .join(Repo, Repo.id == Mirror.repo_id)
        .join(Org, Org.id == Repo.org_id)
        .where(Org.name == repo.org, Repo.name == repo.name)
    ).first()
    return None if row is None else Origin(*row)


def claims(session: Session, files: Iterable[File]) -> dict[str, str]:
    """The SHA-256 that the upstream lists of those LFS files that were not fetched, by git's id."""
    oids = sorted({file.oid for file in files if file.lfs and is_awaited(file.sha256)})
    found: dict[str, str] = {}
    for start in range(0, len(oids), 500):
        query = select(MirrorClaim.oid, MirrorClaim.sha256).where(
            MirrorClaim.oid.in_(oids[start : start + 500])
        )
        found |= dict(session.execute(query).all())
    return found


def as_listed(database: Database, listed: Sequence[Entry]) -> list[Entry]:
    """The entries with the SHA-256 that the upstream lists where a stand-in is: to be shown, not to be read."""
    files = [entry.file for entry in listed if entry.file is not None]
    if not any(file.lfs and is_awaited(file.sha256) for file in files):
        return list(listed)
    with database.read() as session:
        known = claims(session, files)
    return [
        entry
        if entry.file is None or entry.file.oid not in known
        else replace(entry, file=replace(entry.file, sha256=known[entry.file.oid]))
        for entry in listed
    ]


def refuse_change(session: Session, repo: RepoName) -> None:
    """Raises RequestError 403 for a mirrored repository."""
    if (origin := origin_of(session, repo)) is not None:
        raise RequestError(
            403,
            f"{repo} is a copy of {origin.upstream}/{repo}: upload there, or delete the copy and create a "
            "repository of this hub in its place.",
            code="Forbidden",
        )


def may_be_absent(session: Session) -> set[str]:
    """Content that mirrored repositories alone refer to: it need not be here, for nobody may have asked for it."""
    is_mirrored = TreeEntry.repo_id.in_(select(Mirror.repo_id))
    named = select(TreeEntry.sha256).where(TreeEntry.sha256.is_not(None)).distinct()
    theirs, ours = session.scalars(named.where(is_mirrored)), session.scalars(named.where(~is_mirrored))
    return {name for name in theirs if name is not None} - {name for name in ours if name is not None}
