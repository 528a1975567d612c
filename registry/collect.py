"""Collect content that nothing refers to: uploads that no commit followed, what only deleted repositories had.

Content is marked when it is first found so, and deleted once it has been so for a grace period in which
nobody asked for it. An upload in progress therefore keeps what it sent and what it was told is here already
(`touch`) for at least that long, and so does a backup with what was referred to when it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from sqlalchemy import Column, delete, select, update
from sqlalchemy.orm import Session

from .blobs import BlobStore
from .db import Database
from .locks import insert_missing
from .models import Base, Orphan

GRACE = timedelta(hours=24)
_BATCH = 500


@dataclass(frozen=True)
class Collected:
    """What a collection did: blobs found unreferred to for the first time, and deleted, with their bytes."""

    waiting: int
    waiting_bytes: int
    deleted: int
    deleted_bytes: int


def content_columns() -> list[Column[str]]:
    """Every column that names content, marked so in `models.py`."""
    return [
        column
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if column.info.get("content")
    ]


def touch(database: Database, sha256: str, now: datetime) -> None:
    """Keep the content, if it is waiting to be deleted, for a whole grace period from `now`.

    Waits while it is being deleted: whether it is here can be asked afterwards.
    """
    with database.read() as session:
        if session.get(Orphan, sha256) is None:
            return
    with database.write() as session:
        session.execute(update(Orphan).where(Orphan.sha256 == sha256).values(since=now))


def collect(
    database: Database,
    blobs: BlobStore,
    now: datetime,
    grace: timedelta = GRACE,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Collected:
    """Mark what nothing refers to, delete what was marked before `now - grace`; safe while servers run.

    Ends early once `stopped` says so; the rest waits for another time.
    """
    waiting = waiting_bytes = deleted = deleted_bytes = 0
    for batch in _batches(blobs.storage.names()):
        with database.write() as session:
            orphans = _unreferred(session, batch)
            insert_missing(session, Orphan, [{"sha256": name, "since": now} for name in sorted(orphans)])
            session.execute(delete(Orphan).where(Orphan.sha256.in_(set(batch) - orphans)))
        for sha256 in sorted(orphans):
            if stopped():
                return Collected(waiting, waiting_bytes, deleted, deleted_bytes)
            if _delete(database, blobs, sha256, now - grace):
                deleted, deleted_bytes = deleted + 1, deleted_bytes + batch[sha256]
            else:
                waiting, waiting_bytes = waiting + 1, waiting_bytes + batch[sha256]
    blobs.storage.clear_abandoned(grace.total_seconds())
    return Collected(waiting, waiting_bytes, deleted, deleted_bytes)


def _delete(database: Database, blobs: BlobStore, sha256: str, before: datetime) -> bool:
    """Delete one marked content while its row is locked, so that who touches it comes before or after."""
    with database.write() as session:
        query = select(Orphan).where(Orphan.sha256 == sha256, Orphan.since <= before)
        row = session.scalar(query.with_for_update())
        if row is None or not _unreferred(session, {sha256: 0}):
            return False
        blobs.storage.delete(sha256)
        session.delete(row)
    return True


def _unreferred(session: Session, names: Iterable[str]) -> set[str]:
    """Those of the names that no column of content has."""
    wanted = set(names)
    found: set[str] = set()
    for column in content_columns():
        found |= set(session.scalars(select(column).where(column.in_(wanted)).distinct()))
    return wanted - found


def _batches(names: Iterator[tuple[str, int]]) -> Iterator[dict[str, int]]:
    while batch := dict(islice(names, _BATCH)):
        yield batch
