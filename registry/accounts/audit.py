"""The audit log: who did what, to what, from where. Rows are added and never changed; the database refuses it.
Old ones can be removed by command (`prune`), which leaves an entry that says so.

What the commands and the admin page change is written in the same transaction as its entry. What clients
change over the wire is written before they are told that it happened (`audit_log.py`).
"""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from ..clock import utc_now
from ..models import Audit


@dataclass(frozen=True)
class Actor:
    """Who acts: `user:ada`, `org:acme`, `publisher:acme`, `cli:root`; by which token; from which address."""

    name: str
    address: str
    token_id: int | None = None


@dataclass(frozen=True)
class Event:
    """An entry. `subject` is what it was done to, `status` the HTTP status or 0 for a command."""

    id: int
    at: datetime
    actor: str
    token_id: int | None
    address: str
    action: str
    subject: str
    status: int
    detail: dict[str, Any]


def shell() -> Actor:
    """The person at this machine's command line."""
    try:  # not getpass.getuser(), which believes the environment
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())  # a container's user often has no name
    return Actor(f"cli:{name}", "local")


def record(
    session: Session, actor: Actor, action: str, subject: str, *, status: int = 0, **detail: Any
) -> None:
    """Add an entry within the session's transaction."""
    session.add(
        Audit(
            at=utc_now(),
            actor=actor.name[:200],
            token_id=actor.token_id,
            address=actor.address[:64],
            action=action[:64],
            subject=subject[:400],
            status=status,
            detail=json.dumps(detail, sort_keys=True),
        )
    )


def events(
    session: Session,
    *,
    org: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[Event]:
    """Entries, newest first: of an organization and its repositories, of an actor, of an action."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit)
    if org is not None:
        query = query.where((Audit.subject == org) | Audit.subject.startswith(f"{org}/", autoescape=True))
    if actor is not None:
        query = query.where(Audit.actor == actor)
    if action is not None:
        query = query.where(Audit.action == action)
    if since is not None:
        query = query.where(Audit.at >= since)
    if before is not None:
        query = query.where(Audit.id < before)
    return [_event(row) for row in session.scalars(query)]


def prune(session: Session, actor: Actor, before: datetime) -> int:
    """Remove the entries from before a date (UTC); returns how many, which the log then says."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":  # what is dropped here is there again when others can look
        guard = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = 'audit_no_delete'"
        again = connection.execute(text(guard)).scalar_one()
        open_up = "DROP TRIGGER audit_no_delete"
    else:
        open_up = "ALTER TABLE audit DISABLE TRIGGER audit_no_change"
        again = "ALTER TABLE audit ENABLE TRIGGER audit_no_change"
    connection.exec_driver_sql(open_up)
    removed = connection.execute(delete(Audit).where(Audit.at < before)).rowcount
    connection.exec_driver_sql(again)
    if removed:
        record(session, actor, "audit.prune", "", before=before.isoformat(), entries=removed)
    return removed


def _event(row: Audit) -> Event:
    return Event(
        row.id,
        row.at,
        row.actor,
        row.token_id,
        row.address,
        row.action,
        row.subject,
        row.status,
        json.loads(row.detail),
    )
