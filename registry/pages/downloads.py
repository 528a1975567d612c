"""Downloads of repositories by day, as the protocol's handlers count them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date

from sqlalchemy.orm import Session


def daily_downloads(session: Session, repo_ids: Collection[int]) -> Mapping[int, Mapping[date, int]]:
    """Repository -> day -> downloads; what was not downloaded is left out. Nothing is counted yet."""
    return {}
