"""One space of names for organizations and users. Their case is kept, and does not tell two of them apart.

No index can hold that over two tables, so whoever names one asks while nobody else does (`locks.lock_names`).
"""

from __future__ import annotations

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from .errors import conflict
from .locks import lock_names
from .models import Org, User
from .names import check_org


def taken_by(session: Session, name: str) -> tuple[str, str] | None:
    """What has the name in whichever case, "organization" or "user", and how it is spelled; None if nobody."""
    for kind, table in (("organization", Org), ("user", User)):
        query = select(table.name).where(func.lower(table.name) == name.lower())
        if (found := session.scalar(query.limit(1))) is not None:
            return kind, found
    return None


def ensure_org(session: Session, name: str) -> int:
    """The organization's row, created if it is new, and not to be removed before this transaction ends.

    Raises RequestError: 400 for a bad name, 409 for a user's, or an organization's in another case.
    """
    check_org(name)
    query = select(Org.id).where(Org.name == name).with_for_update(read=True, key_share=True)
    if (found := session.scalar(query)) is not None:
        return found
    lock_names(session)
    if (found := session.scalar(query)) is not None:  # it was made while this one waited
        return found
    require_free(session, name)
    return session.execute(insert(Org).values(name=name).returning(Org.id)).scalar_one()


def require_free(session: Session, name: str) -> None:
    """Raises RequestError 409 if the name is an organization's or a user's in whichever case."""
    if (taken := taken_by(session, name)) is not None:
        raise conflict(
            f"{name!r} is taken by the {taken[0]} {taken[1]!r}: write it so, or choose another name."
        )
