"""The registry's database, and transactions on it: a SQLite file in the data folder, or Postgres.

SQLite: writers queue (BEGIN IMMEDIATE), so what a transaction reads is what it replaces; readers see one
state and never wait (write-ahead log). Postgres: writers lock the rows they replace (`SELECT … FOR UPDATE`);
a reader's transaction sees one state (repeatable read). On both, a transaction that was reported as done
survives a power cut. The schema is kept by `migrations`, applied when a database is opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    MetaData,
    NullPool,
    Table,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session

from hub_loader.errors import MissingExtraError, RegistryError, UsageError

from . import migrations

_POOL = (
    40  # SQLite: as many connections as Starlette has threads for handlers, so that none waits for another
)
_MIGRATING = 0x6B687562  # the Postgres lock of the process that migrates


class Database:
    """The registry's tables. Safe to share between threads; several processes may open it."""

    def __init__(self, data: Path, url: str | None = None) -> None:
        """Open or create it, at `url` or as a file of the folder `data`, and migrate it to this program's schema.

        Raises RegistryError if the folder or the database cannot be used, UsageError for an address that is none.
        """
        self._url = database_url(data, url)
        self._name = str(data) if url is None else self._url.render_as_string()
        try:
            data.mkdir(parents=True, exist_ok=True)
            self._engine = _open(self._url)
            self._reader = self._engine
            if self._url.get_backend_name() != "sqlite":
                self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ")
            self._migrate()
        except (OSError, DatabaseError, ValueError) as error:
            said = error.orig if isinstance(error, DatabaseError) else getattr(error, "strerror", None)
            reason = str(said or error).strip()
            raise RegistryError(
                f"{self._name} cannot be used: {' '.join(reason.split())}. Name another folder or database."
            ) from None

    def _migrate(self) -> None:
        with self._engine.connect() as connection:
            if migrations.current(connection) == migrations.head():
                return
        engine = _open(self._url, for_migration=True)
        with engine.connect().execution_options(immediate=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
            found = migrations.current(connection)
            if found not in (None, migrations.UNMANAGED, *migrations.revisions()):
                raise RegistryError(
                    f"{self._name} was written by another version of the registry ({found}; this one knows "
                    f"up to {migrations.head()}): use the version that wrote it."
                )
            if found != migrations.head():  # another process may have been faster
                migrations.upgrade(connection)

    def close(self) -> None:
        """Let go of the database; the last process to do so folds SQLite's write-ahead log in."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that may write; committed on a normal exit, rolled back on an exception.

        On SQLite it alone writes. On Postgres others write too: lock what a decision rests on.
        """
        engine = self._engine.execution_options(immediate=True)
        with Session(engine) as session, session.begin():
            yield session


def restore_rows(
    data: Path, url: str | None, revision: str, tables: Mapping[str, Iterable[dict[str, Any]]]
) -> int:
    """Fill an empty database with a backup's rows and bring it from its revision to this program's; their number.

    All of it is one transaction. Raises RegistryError if the database is not empty, or the rows do not fit.
    """
    data.mkdir(parents=True, exist_ok=True)
    address = database_url(data, url)
    engine = _open(address, for_migration=True)
    count = 0
    try:
        with engine.connect().execution_options(immediate=True) as connection, connection.begin():
            if inspect(connection).get_table_names():
                raise RegistryError(f"{address.render_as_string()} is not empty: restore into a new place.")
            migrations.upgrade(connection, revision)
            schema = MetaData()
            schema.reflect(connection)
            for table in schema.sorted_tables:
                if table.name not in tables:
                    continue
                if connection.execute(select(table).limit(1)).first() is not None:
                    connection.execute(table.delete())  # what a migration put there, the backup has too
                rows = iter(tables[table.name])
                while batch := list(islice(rows, 1000)):
                    connection.execute(table.insert(), batch)
                    count += len(batch)
                _go_on_counting(connection, table)
            migrations.upgrade(connection)
    except (DatabaseError, ValueError) as error:
        reason = " ".join(str(error.orig if isinstance(error, DatabaseError) else error).split())
        raise RegistryError(f"{address.render_as_string()} cannot be filled: {reason}.") from None
    finally:
        engine.dispose()
    return count


def _go_on_counting(connection: Connection, table: Table) -> None:
    """Postgres counts ids apart from the table: let it go on after the highest."""
    if connection.dialect.name != "postgresql":
        return
    for column in table.primary_key:
        find = text("SELECT pg_get_serial_sequence(:table, :column)")
        sequence = connection.execute(find, {"table": table.name, "column": column.name}).scalar()
        if sequence is not None:
            highest = select(func.setval(sequence, func.coalesce(func.max(column), 0) + 1, False))
            connection.execute(highest)


def database_url(data: Path, url: str | None) -> URL:
    """Where the database is: the file in `data`, or `url`. Raises UsageError for what is neither database."""
    if url is None:
        return URL.create("sqlite", database=str(data / "registry.sqlite"))
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise UsageError(
            f"{url!r} is no database address: give postgresql://USER:PASSWORD@HOST/NAME, or none for a "
            "file in the data folder."
        )
    return parsed.set(drivername="postgresql+psycopg")


def _open(url: URL, *, for_migration: bool = False) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url, for_migration)
    try:
        return create_engine(url, pool_size=10, max_overflow=10, pool_pre_ping=True)
    except (ModuleNotFoundError, NoSuchModuleError):
        raise MissingExtraError(
            "A Postgres database needs psycopg: pip install 'kernel-hub[registry-postgres]'"
        ) from None


def _open_sqlite(url: URL, for_migration: bool) -> Engine:
    connect = {"timeout": 30}
    if for_migration:  # closed after use: its foreign keys are off
        engine = create_engine(url, poolclass=NullPool, connect_args=connect)
    else:
        engine = create_engine(url, pool_size=_POOL, connect_args=connect)
    foreign_keys = "OFF" if for_migration else "ON"

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's events below begin transactions, not the driver
        for setting in ("journal_mode = WAL", "synchronous = FULL", f"foreign_keys = {foreign_keys}"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
