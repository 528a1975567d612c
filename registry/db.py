"""The database file of a data folder, and transactions on it.

Writers queue (BEGIN IMMEDIATE), so what a transaction reads is what it replaces; readers see one state and
never wait (write-ahead log). A transaction that was reported as done survives a power cut (synchronous).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from hub_loader.errors import RegistryError

from .models import SCHEMA_VERSION, Base

_POOL = 40  # as many connections as Starlette has threads for handlers, so that none waits for another


class Database:
    """The tables of one data folder. Safe to share between threads; several processes may open it."""

    def __init__(self, data: Path) -> None:
        """Open or create it. Raises RegistryError if the folder or its database cannot be used."""
        try:
            data.mkdir(parents=True, exist_ok=True)
            self._engine = _open(data / "registry.sqlite")
            self._prepare(data)
        except (OSError, DatabaseError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise RegistryError(f"The data folder {data} cannot be used: {reason}. Name another.") from None

    def _prepare(self, data: Path) -> None:
        with self.write() as session:
            version = session.execute(text("PRAGMA user_version")).scalar_one()
            if version == 0:
                Base.metadata.create_all(session.connection())
                session.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))
            elif version != SCHEMA_VERSION:
                raise RegistryError(
                    f"{data} was written by another version of the registry (schema {version}, this one has "
                    f"{SCHEMA_VERSION}): use the version that wrote it."
                )

    def close(self) -> None:
        """Let go of the database; the last process to do so folds the write-ahead log in."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that alone may write; committed on a normal exit, rolled back on an exception."""
        engine = self._engine.execution_options(immediate=True)
        with Session(engine) as session, session.begin():
            yield session


def _open(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", pool_size=_POOL, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's events below begin transactions, not the driver
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
