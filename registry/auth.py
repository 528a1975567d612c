"""Tokens: made on the command line, shown once, kept only as SHA-256, scoped to one organization.

Reading is public. Writing needs a token of the repository's organization that was made for writing.
A token has 256 random bits, so a plain hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timezone

from sqlalchemy import delete, select

from hub_loader.errors import UsageError

from .errors import forbidden, unauthorized
from .models import Org, Token
from .store import Store, ensure_org

PREFIX = "khub_"


@dataclass(frozen=True)
class TokenInfo:
    """A token without its secret; `hint` is how it begins."""

    id: int
    org: str
    can_write: bool
    hint: str
    created_at: datetime


def create_token(store: Store, org: str, *, can_write: bool) -> str:
    """Make a token of `org`, creating the organization if it is new; returns the secret, kept nowhere."""
    secret = PREFIX + secrets.token_urlsafe(32)
    with store.write() as session:
        session.add(
            Token(
                org_id=ensure_org(session, org),
                sha256=_hash(secret),
                hint=secret[: len(PREFIX) + 4],
                can_write=can_write,
                created_at=datetime.now(timezone.utc).replace(tzinfo=None),
            )
        )
    return secret


def list_tokens(store: Store) -> list[TokenInfo]:
    """Every token that works, oldest first."""
    with store.read() as session:
        rows = session.execute(select(Token, Org.name).join(Org, Org.id == Token.org_id).order_by(Token.id))
        return [_info(token, org) for token, org in rows.tuples()]


def revoke_token(store: Store, token_id: int) -> None:
    """Make a token useless at once. Raises UsageError if there is none of that number."""
    with store.write() as session:
        if session.execute(delete(Token).where(Token.id == token_id)).rowcount == 0:  # type: ignore[attr-defined]
            raise UsageError(f"No token {token_id}: `khub registry token list` shows their numbers.")


def find_token(store: Store, authorization: str | None) -> TokenInfo | None:
    """The token of an `Authorization: Bearer` header; None if it is missing or unknown here."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        return None
    with store.read() as session:
        query = (
            select(Token, Org.name)
            .join(Org, Org.id == Token.org_id)
            .where(Token.sha256 == _hash(secret.strip()))
        )
        row = session.execute(query).tuples().first()
    return None if row is None else _info(*row)


def require_writer(store: Store, authorization: str | None, org: str) -> TokenInfo:
    """The token that allows writing to `org`. Raises RequestError: 401 without one, 403 for a wrong one."""
    token = find_token(store, authorization)
    if token is None:
        state = "none was sent" if not authorization else "the one sent is not known here"
        raise unauthorized(
            f"Writing to {org!r} needs a token and {state}: make one with "
            f"`khub registry token create --org {org} --write` and set HF_TOKEN."
        )
    if token.org != org:
        raise forbidden(f"This token belongs to {token.org!r} and cannot write to {org!r}")
    if not token.can_write:
        raise forbidden(f"This token of {org!r} is for reading: make one with --write")
    return token


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _info(token: Token, org: str) -> TokenInfo:
    return TokenInfo(token.id, org, token.can_write, token.hint, token.created_at)
