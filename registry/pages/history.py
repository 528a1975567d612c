"""A branch's commits, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from ..models import Commit
from ..store import Revision, Store


@dataclass(frozen=True)
class Change:
    """One commit: its id, message, author (an account's name) and time in UTC."""

    commit: str
    message: str
    author: str
    date: datetime


def history(store: Store, revision: Revision, limit: int) -> tuple[list[Change], str | None]:
    """Up to `limit` commits from `revision` back, and the one that follows them, if there is one."""
    changes: list[Change] = []
    following: str | None = revision.commit
    with store.read() as session:
        while following is not None and len(changes) < limit:
            row = session.scalar(
                select(Commit).where(Commit.repo_id == revision.repo_id, Commit.oid == following)
            )
            if row is None:
                return changes, None
            changes.append(Change(row.oid, row.message, row.author, row.created_at))
            following = row.parent_oid
    return changes, following
