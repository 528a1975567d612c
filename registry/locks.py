"""What keeps writers apart where they do not queue: row locks and inserts that tolerate a twin.

On SQLite a writing transaction is alone, and both do nothing more than their plain forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .models import Base, Org, Ref, Repo

if TYPE_CHECKING:
    from .names import RepoName

# Postgres' locks of what no row stands for; `db` has one more.
_NAMING = 0x6B68756E
_TRUST = 0x6B687574
_COLLISIONS = frozenset({"23503", "23505"})  # foreign_key_violation, unique_violation
COLLISION = "Somebody changed or removed the same thing at this moment: look again, then try again."


def lock_ref(session: Session, repo: RepoName, ref: str) -> None:
    """Keep everybody else from moving or deleting `ref` (`heads/v1`) until this transaction ends.

    What is read of it after this call is what the transaction replaces. To be called before any other
    writing. A reference that is not there is no error here.
    """
    named = (
        select(Repo.id).join(Org, Org.id == Repo.org_id).where(Org.name == repo.org, Repo.name == repo.name)
    )
    # The repository first, as who deletes it does: in the other order the two would wait for each other.
    repo_id = session.scalar(named.with_for_update(of=Repo, read=True, key_share=True))
    session.execute(
        select(Ref.commit_oid).where(Ref.repo_id == repo_id, Ref.name == ref).with_for_update()
    ).all()


def lock_repo(session: Session, repo: RepoName) -> None:
    """Keep everybody else from changing, renaming or deleting the repository; what is read after this is what is."""
    named = (
        select(Repo.id).join(Org, Org.id == Repo.org_id).where(Org.name == repo.org, Repo.name == repo.name)
    )
    session.execute(named.with_for_update(of=Repo)).all()


def lock_names(session: Session) -> None:
    """Keep everybody else from naming an organization or a user until this transaction ends.

    Whether a name is free depends on two tables and on its case, which no index says.
    """
    _take(session, _NAMING)


def lock_trust(session: Session) -> None:
    """Keep everybody else from changing the TUF metadata, also the first, until this transaction ends."""
    _take(session, _TRUST)


def _take(session: Session, key: int) -> None:
    if session.connection().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def insert_missing(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose keys are not taken, also by a transaction under way.

    Give rows of equal keys in one order everywhere, or two transactions could wait for each other.
    """
    if rows:
        session.connection().execute(_insert(session, table), list(rows))


def insert_new(session: Session, table: type[Base], row: dict[str, Any]) -> bool:
    """Insert one row; False if its key is taken."""
    statement = _insert(session, table).returning(*table.__table__.primary_key)
    return session.connection().execute(statement, row).first() is not None


def put(session: Session, table: type[Base], row: dict[str, Any]) -> None:
    """Insert one row, or give the one of its key the row's other values."""
    key = [column.name for column in table.__table__.primary_key]
    values = {name: value for name, value in row.items() if name not in key}
    statement = _dialect(session)(table).on_conflict_do_update(index_elements=key, set_=values)
    session.connection().execute(statement, row)


def is_collision(error: Exception) -> bool:
    """Whether Postgres refused what would be there twice, or belongs to what is gone: another was faster."""
    return isinstance(error, IntegrityError) and getattr(error.orig, "sqlstate", "") in _COLLISIONS


def _insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    return _dialect(session)(table).on_conflict_do_nothing()


def _dialect(session: Session) -> Callable[[type[Base]], postgresql.Insert | sqlite.Insert]:
    return postgresql.insert if session.connection().dialect.name == "postgresql" else sqlite.insert
