"""How much a registry holds, as metrics: asked of the database, and seldom, because counting reads its indexes."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from ..models import Commit, Org, Repo, TreeEntry
from ..store import Store

_EVERY = 60.0  # seconds that a count is good for, at least
_SHARE = 100  # and as many times as long as the count itself took: it costs a hundredth of a core at most


@dataclass(frozen=True)
class Stored:
    """What is in the database. Content counts once, in however many commits it is; `bytes` is of that content."""

    organizations: int
    repositories: int
    commits: int
    blobs: int
    bytes: int


_HELP = {
    "organizations": "Organizations",
    "repositories": "Repositories",
    "commits": "Commits of all repositories",
    "blobs": "Different contents that commits refer to",
    "bytes": "Bytes of different contents that commits refer to",
}


def count_stored(store: Store) -> Stored:
    """Count now."""
    content = select(func.max(TreeEntry.size).label("size")).where(TreeEntry.sha256.is_not(None))
    each = content.group_by(TreeEntry.sha256).subquery()
    with store.read() as session:
        orgs, repos, commits = (
            int(session.scalar(select(func.count()).select_from(table)) or 0) for table in (Org, Repo, Commit)
        )
        blobs, size = session.execute(
            select(func.count(), func.coalesce(func.sum(each.c.size), 0)).select_from(each)
        ).one()
    return Stored(orgs, repos, commits, int(blobs), int(size))


class StoredCollector(Collector):
    """`khub_stored_…` and the free bytes of the data folder's disk, at each scrape."""

    def __init__(self, store: Store, data: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._data = data
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Stored | None = None
        self._until = 0.0

    def describe(self) -> list[Metric]:
        """Nothing is asked before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics. Raises an error of the database if it does not answer."""
        known = self._current()
        for name, text in _HELP.items():
            yield GaugeMetricFamily(f"khub_stored_{name}", text, getattr(known, name))
        free = shutil.disk_usage(self._data).free
        yield GaugeMetricFamily("khub_data_free_bytes", "Free bytes on the data folder's disk", free)

    def _current(self) -> Stored:
        with self._lock:  # of scrapes at the same time one asks
            began = self._clock()
            if self._known is None or began >= self._until:
                self._known = count_stored(self._store)
                ended = self._clock()
                self._until = ended + max(_EVERY, _SHARE * (ended - began))
            return self._known
