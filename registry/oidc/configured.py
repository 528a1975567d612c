"""The publishers of this hub's organizations, in its database; and the proofs that were used up."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hub_loader.errors import UsageError

from ..accounts.audit import Actor, record
from ..accounts.directory import ensure_org
from ..clock import utc_now
from ..errors import bad_request, unauthorized
from ..locks import insert_new
from ..models import Org, UsedProof
from ..models import Publisher as Row
from ..names import check_repo_name
from .publishers import Publisher

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def add_publisher(session: Session, actor: Actor, new: Publisher) -> Publisher:
    """Let a workflow's runs upload; returns it with its number.

    Raises RequestError for a bad issuer or name, UsageError for a repository that is not OWNER/NAME.
    """
    check_issuer(new.issuer)
    owner, slash, name = new.repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise UsageError(f"{new.repository!r} is no repository at the issuer: write OWNER/NAME.")
    if new.kernel is not None:
        check_repo_name(new.kernel)
    fields = asdict(new)
    del fields["id"], fields["org"]
    row = Row(org_id=ensure_org(session, actor, new.org).id, created_at=utc_now(), **fields)
    session.add(row)
    session.flush()
    record(session, actor, "publisher.add", new.org, publisher=row.id, **fields)
    return replace(new, id=row.id)


def list_publishers(session: Session, org: str | None = None) -> list[Publisher]:
    """Every publisher, or an organization's, oldest first."""
    query = select(Row, Org.name).join(Org, Org.id == Row.org_id).order_by(Row.id)
    if org is not None:
        query = query.where(Org.name == org)
    return [
        Publisher(
            row.id,
            name,
            row.issuer,
            row.repository,
            row.kernel,
            row.workflow,
            row.environment,
            row.ref,
            row.owner_id,
        )
        for row, name in session.execute(query)
    ]


def remove_publisher(session: Session, actor: Actor, number: int) -> None:
    """Let its runs upload no longer; tokens that were made for them end at once. Raises UsageError."""
    row = session.get(Row, number)
    if row is None:
        raise UsageError(f"No publisher {number}: `khub registry publisher list` shows their numbers.")
    record(session, actor, "publisher.remove", session.get_one(Org, row.org_id).name, publisher=number)
    session.delete(row)


def check_issuer(url: str) -> str:
    """An issuer's address as its tokens spell it. Raises RequestError 400 unless https, or loopback."""
    parts = urlsplit(url)
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not secure or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise bad_request(f"{url!r} is no issuer: give its https:// address, without query or fragment.")
    return url


def use_up(session: Session, issuer: str, jti: str, until: datetime) -> None:
    """Take an issuer's token, by its id, out of use for as long as it is valid.

    Raises RequestError 401 if it was used before, at the same moment by another process as well.
    """
    session.execute(delete(UsedProof).where(UsedProof.expires_at < utc_now()))
    digest = hashlib.sha256(f"{issuer}\0{jti}".encode()).hexdigest()
    if not insert_new(session, UsedProof, {"sha256": digest, "expires_at": until}):
        raise unauthorized(
            "The issuer's token was used before: each is good for one exchange; ask for another."
        )
