"""Tokens: made once, shown once, kept as a SHA-256; and who stands behind one that comes with a request.

A token has 256 random bits, so a plain hash is enough: there is nothing to guess. What it may do follows
from the roles its owner has now, so a member who leaves takes the worth of all his tokens with him.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from hub_loader.errors import UsageError

from ..models import Member, Org, Token, User
from .identity import ANONYMOUS, Identity, Kind, Role, Scope

PREFIX = "khub_"
SESSION_LIFE = timedelta(hours=12)
_KEPT = timedelta(days=30)


@dataclass(frozen=True)
class NewToken:
    """What a token is to be. Exactly one of `user_id` and `org_id` says whose; rows by their ids.

    `only_org_id` and `only_repo` (a name in that organization) limit it.
    """

    scope: Scope
    org_id: int | None = None
    user_id: int | None = None
    only_org_id: int | None = None
    only_repo: str | None = None
    label: str = ""
    expires_at: datetime | None = None
    publisher_id: int | None = None
    parent_id: int | None = None


@dataclass(frozen=True)
class TokenInfo:
    """A token without its secret; `hint` is how it begins. Dates in UTC, without a zone."""

    id: int
    kind: str
    owner: str
    org: str | None
    scope: str
    limit: str
    label: str
    hint: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def can_write(self) -> bool:
        """Whether it is for more than reading."""
        return self.scope != "read"

    def state(self, now: datetime) -> str:
        """`revoked`, `expired`, or empty for one that works."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else ""


def issue(session: Session, new: NewToken, now: datetime) -> tuple[str, Token]:
    """Make a token; the secret is returned and kept nowhere."""
    secret = PREFIX + secrets.token_urlsafe(32)
    row = Token(
        org_id=new.org_id,
        user_id=new.user_id,
        publisher_id=new.publisher_id,
        parent_id=new.parent_id,
        only_org_id=new.only_org_id,
        only_repo=new.only_repo,
        scope=str(new.scope),
        label=new.label,
        sha256=_hash(secret),
        hint=secret[: len(PREFIX) + 4],
        created_at=now,
        expires_at=new.expires_at,
    )
    session.add(row)
    session.flush()
    return secret, row


def identify(session: Session, authorization: str | None, now: datetime) -> Identity:
    """Who an `Authorization: Bearer` header speaks for; anonymous, with the reason, if nobody."""
    if not authorization:
        return ANONYMOUS
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        return replace(ANONYMOUS, unknown="what was sent is no Bearer token")
    return identify_secret(session, secret.strip(), now, login=False)


def identify_secret(session: Session, secret: str, now: datetime, *, login: bool) -> Identity:
    """Who stands behind a secret: a token's, or with `login` a login's, never one in the place of the other."""
    row = session.scalar(select(Token).where(Token.sha256 == _hash(secret)))
    if row is None or (row.parent_id is not None) != login:
        return replace(ANONYMOUS, unknown="the one sent is not known here")
    if row.revoked_at is not None:
        return replace(ANONYMOUS, unknown="the one sent is revoked")
    if row.expires_at is not None and row.expires_at <= now:
        return replace(ANONYMOUS, unknown=f"the one sent expired at {row.expires_at:%Y-%m-%d %H:%M} UTC")
    return _identity(session, row)


def _identity(session: Session, row: Token) -> Identity:
    only_org = None if row.only_org_id is None else session.get_one(Org, row.only_org_id).name
    limits = Identity(
        Kind.USER, scope=Scope[row.scope.upper()], only_org=only_org, only_repo=row.only_repo, token_id=row.id
    )
    limits = replace(limits, label=row.label)
    if row.user_id is not None:
        user = session.get_one(User, row.user_id)
        memberships = session.execute(
            select(Org.name, Member.role).join(Org, Org.id == Member.org_id).where(Member.user_id == user.id)
        )
        roles = {org: Role[role.upper()] for org, role in memberships}
        return replace(
            limits,
            name=user.name,
            user_id=user.id,
            roles=MappingProxyType(roles),
            operator=user.operator,
        )
    assert row.org_id is not None  # the table asks for one of the two
    org = session.get_one(Org, row.org_id).name
    publisher = row.publisher_id is not None
    role = Role.WRITER if publisher else Role.OWNER
    kind = Kind.PUBLISHER if publisher else Kind.ORG
    return replace(limits, kind=kind, name=org, roles=MappingProxyType({org: role}))


def mark_used(session: Session, token_id: int, now: datetime) -> None:
    """Note that a token was used, to the hour: enough to find those that nobody needs."""
    hour = now.replace(minute=0, second=0)
    stale = or_(Token.last_used_at.is_(None), Token.last_used_at < hour)
    session.execute(update(Token).where(Token.id == token_id, stale).values(last_used_at=hour))


def list_tokens(session: Session, *, org: str | None = None, user: str | None = None) -> list[TokenInfo]:
    """Tokens, oldest first, also those that no longer work; logins are left out."""
    query = select(Token).where(Token.parent_id.is_(None)).order_by(Token.id)
    if org is not None:
        query = query.join(Org, Org.id == Token.org_id).where(Org.name == org)
    if user is not None:
        query = query.join(User, User.id == Token.user_id).where(User.name == user)
    return [token_info(session, row) for row in session.scalars(query)]


def token_info(session: Session, row: Token) -> TokenInfo:
    """A token's row as it may be shown."""
    org = None if row.org_id is None else session.get_one(Org, row.org_id).name
    owner = org if row.user_id is None else session.get_one(User, row.user_id).name
    identity = _identity(session, row)
    return TokenInfo(
        id=row.id,
        kind=str(identity.kind),
        owner=owner or "",
        org=org,
        scope=row.scope,
        limit=identity.limit,
        label=row.label,
        hint=row.hint,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


def revoke(session: Session, token_id: int, now: datetime) -> TokenInfo:
    """Make a token and the logins made with it useless at once. Raises UsageError if there is none."""
    row = session.get(Token, token_id)
    if row is None or row.revoked_at is not None:
        raise UsageError(f"No token {token_id}: `khub registry token list` shows their numbers.")
    family = or_(Token.id == token_id, Token.parent_id == token_id)
    session.execute(update(Token).where(family, Token.revoked_at.is_(None)).values(revoked_at=now))
    session.refresh(row)
    return token_info(session, row)


def forget_ended(session: Session, before_id: int, now: datetime) -> None:
    """Remove logins and CI runs' tokens that ended a month ago; the audit log goes on telling of them.

    Only those older than the token `before_id`, so that a number of the log never means another token.
    """
    short_lived = or_(Token.parent_id.is_not(None), Token.publisher_id.is_not(None))
    ended = Token.expires_at < now - _KEPT
    session.execute(delete(Token).where(Token.id < before_id, short_lived, ended))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
