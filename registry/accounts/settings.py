"""The hub's settings, kept in its database: all of its processes read them, changes need no restart."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ..locks import put
from ..models import Setting
from .audit import Actor, record


@dataclass(frozen=True)
class Settings:
    """None: not set. `public_url` is the hub's address as its users write it into HF_ENDPOINT.

    Rates are requests per second that one address without a token, or one token, may make in the long run
    in each server process; `burst` is how many seconds' worth of them may come at once.
    """

    public_url: str | None = None
    quota_bytes: int | None = None
    max_file_bytes: int | None = None
    max_commit_files: int | None = None
    rate_address: float | None = None
    rate_token: float | None = None
    burst: float = 10.0


def read_settings(session: Session) -> Settings:
    """What is set; names that this version does not know are passed over."""
    known = {field.name for field in fields(Settings)}
    rows = session.execute(select(Setting.name, Setting.value))
    return Settings(**{name: json.loads(value) for name, value in rows if name in known})


def change_settings(session: Session, actor: Actor, changes: dict[str, Any]) -> Settings:
    """Set names to values; None takes a setting away."""
    if not changes:
        return read_settings(session)
    replace(Settings(), **changes)  # an unknown name is an error of ours
    for name, value in changes.items():
        if value is None:
            session.execute(delete(Setting).where(Setting.name == name))
        else:
            put(session, Setting, {"name": name, "value": json.dumps(value)})
    record(session, actor, "settings.change", "", **changes)
    session.flush()
    return read_settings(session)
