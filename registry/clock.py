"""Dates: as the database keeps them, and as clients expect them."""

from __future__ import annotations

from datetime import datetime, timezone


def utc_now() -> datetime:
    """Now in UTC, in whole seconds and without a zone, as the database keeps dates."""
    return datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None)


def iso(date: datetime) -> str:
    """A date of the database as clients expect it."""
    return f"{date.isoformat(timespec='milliseconds')}Z"
