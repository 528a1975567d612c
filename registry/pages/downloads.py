"""How often repositories were downloaded, as the pages draw it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..models import Download


def daily_downloads(session: Session, repo_ids: Collection[int]) -> Mapping[int, Mapping[date, int]]:
    """Repository -> day -> downloads; what was not downloaded is left out."""
    found: dict[int, dict[date, int]] = {}
    query = select(Download.repo_id, Download.day, Download.count).where(Download.repo_id.in_(repo_ids))
    for repo_id, day, count in session.execute(query):
        found.setdefault(repo_id, {})[day] = count
    return found
