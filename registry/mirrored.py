"""What the tables say of repositories that are copies of an upstream hub's.

An upstream lists the SHA-256 of its LFS files alone; of the others git's id. Until such a file is fetched, a
stand-in made of that id has the SHA-256's place: 24 zeros and the id. No content has such a SHA-256, as nobody
can find one that begins with 96 zero bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from .errors import RequestError
from .models import Mirror, Org, Repo, TreeEntry
from .store import RepoName

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
