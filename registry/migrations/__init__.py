"""The schema's history: one file in `versions/` for each change, applied when a database is opened.

A change to `models.py` comes with a file `versions/<number>_<what>.py` whose `revision` is the number and
whose `down_revision` is the number before it; tests compare the models with the migrated schema. On SQLite
a column is changed or dropped with `op.batch_alter_table`, which copies the table: foreign keys are off
meanwhile and checked afterwards. There is no way down: restore a backup.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from ..models import Base

if TYPE_CHECKING:  # a second's import, needed only when there is something to migrate
    from alembic.config import Config

_FOLDER = Path(__file__).parent
_BASELINE = "0001"
UNMANAGED = "0000"  # the schema of the baseline, from before it was kept by migrations
_USER_VERSIONS = {0: None, 1: UNMANAGED}  # what SQLite's user_version says of files without `alembic_version`
_MANAGED = 2


def head() -> str:
    """The newest revision: the highest number in `versions/`."""
    return max(path.name.partition("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*_*.py"))


def revisions() -> list[str]:
    """Every revision of this program, oldest first."""
    return sorted(path.name.partition("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*_*.py"))


def current(connection: Connection) -> str | None:
    """The database's revision; None if it is empty, UNMANAGED for a schema older than migrations."""
    if inspect(connection).has_table("alembic_version"):
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if connection.dialect.name == "sqlite":
        version = connection.execute(text("PRAGMA user_version")).scalar_one()
        return _USER_VERSIONS.get(version, f"schema {version}")
    return None


def upgrade(connection: Connection, to: str = "head") -> None:
    """Bring the database to revision `to` within the connection's transaction; foreign keys must be off.

    Raises sqlalchemy's errors, and ValueError if rows are left that point nowhere.
    """
    from alembic import command

    config = configuration(connection)
    if current(connection) == UNMANAGED:
        command.stamp(config, _BASELINE)
    command.upgrade(config, to)
    if connection.dialect.name == "sqlite":
        connection.execute(text(f"PRAGMA user_version = {_MANAGED}"))  # older programs refuse it
        if broken := connection.execute(text("PRAGMA foreign_key_check")).all():
            raise ValueError(f"{len(broken)} rows point nowhere, the first in {broken[0][0]!r}")


def configuration(connection: Connection) -> Config:
    """Alembic's configuration for these migrations on that connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes.update(connection=connection, metadata=Base.metadata)
    return config
