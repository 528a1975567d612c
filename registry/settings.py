"""Values that all processes on one database share: made by the first that asks, the same for all after it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import update

from .db import Database
from .locks import insert_new
from .models import Setting


def shared(database: Database, name: str, make: Callable[[], str]) -> str:
    """The value of that name, which `make` gives if there is none yet."""
    with database.read() as session:
        found = session.get(Setting, name)
        if found is not None:
            return found.value
    with database.write() as session:
        insert_new(session, Setting, {"name": name, "value": make()})
        return session.get_one(Setting, name).value


def upload_key(database: Database) -> bytes:
    """The key that signs the addresses of uploads."""
    return bytes.fromhex(shared(database, "upload_key", lambda: secrets.token_hex(32)))


def claim(database: Database, name: str, every: timedelta, now: datetime) -> bool:
    """Whether it is this caller's turn to do what is done once `every` so often, whichever process does it."""
    shared(database, name, datetime.min.isoformat)
    with database.write() as session:
        turn = update(Setting).where(Setting.name == name, Setting.value <= (now - every).isoformat())
        statement = turn.values(value=now.isoformat()).returning(Setting.name)
        return session.connection().execute(statement).first() is not None
