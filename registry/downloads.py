"""How often kernels are fetched: counted in memory, added to the database now and then, by day.

A download is one GET of a variant's `metadata.json` from its beginning: every loader fetches that file once
for each variant it takes, and no program that only looks around does. What was counted since the last
`flush` is lost if the process is killed.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute, Session

from .locks import insert_missing
from .models import Download, Repo
from .store import Store

FLUSH_SECONDS = 20
RECENT_DAYS = 30
_log = logging.getLogger(__name__)


class Downloads:
    """The counts of this process that are not in the database yet; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[int, date]] = Counter()

    def fetched(self, repo_id: int, path: str, range_header: str | None) -> None:
        """Count a GET of `path` if it is what a download is."""
        if is_download(path, range_header):
            with self._lock:
                self._counts[repo_id, datetime.now(timezone.utc).date()] += 1

    def flush(self, store: Store) -> None:
        """Add what was counted to the database; kept for the next time if the database cannot take it."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            with store.write() as session:
                _add(session, counts)
        except SQLAlchemyError as error:
            _log.warning("Downloads could not be counted, trying again later: %s", error)
            with self._lock:
                self._counts.update(counts)


def is_download(path: str, range_header: str | None) -> bool:
    """Whether a GET of `path` is a variant's download, not the rest of an interrupted one."""
    parts = path.split("/")
    whole = range_header is None or range_header.replace(" ", "").startswith("bytes=0-")
    return whole and len(parts) == 3 and parts[0] == "build" and parts[2] == "metadata.json"


def recent(session: Session, repo_ids: Sequence[int]) -> dict[int, int]:
    """Each repository's downloads in the last 30 days; those without any are left out."""
    rows = session.execute(
        select(Download.repo_id, func.sum(Download.count))
        .where(Download.repo_id.in_(repo_ids), Download.day > _since())
        .group_by(Download.repo_id)
    )
    return {repo_id: int(count) for repo_id, count in rows}


def recent_count(repo_id: ColumnElement[int] | InstrumentedAttribute[int]) -> ColumnElement[int]:
    """`recent` of one repository as a column to sort by."""
    total = select(func.coalesce(func.sum(Download.count), 0))
    return total.where(Download.repo_id == repo_id, Download.day > _since()).scalar_subquery()


def _since() -> date:
    return datetime.now(timezone.utc).date() - timedelta(days=RECENT_DAYS)


def _add(session: Session, counts: Counter[tuple[int, date]]) -> None:
    here = set(session.scalars(select(Repo.id).where(Repo.id.in_({repo_id for repo_id, _ in counts}))))
    known = sorted((key, count) for key, count in counts.items() if key[0] in here)  # the others are deleted
    rows = [{"repo_id": repo_id, "day": day, "count": 0} for (repo_id, day), _ in known]
    insert_missing(session, Download, rows)
    for (repo_id, day), count in known:
        one = (Download.repo_id == repo_id, Download.day == day)
        session.execute(update(Download).where(*one).values(count=Download.count + count))
