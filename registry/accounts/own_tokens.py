"""Tokens that a user makes of one that they have: never for more, for elsewhere or for longer than that one.

A token covers another of the same user if its scope is no lower and its limits are no narrower. It may list, make
and revoke what it covers, and revoke itself; so one that leaks shows and undoes nothing beyond its own reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from hub_loader.errors import UsageError

from ..errors import RequestError, bad_request, forbidden, unauthorized
from ..models import Org, Token
from ..names import check_org, check_repo_name
from . import directory, tokens
from .identity import Identity, Kind, Scope
from .tokens import NewToken, TokenInfo

MOST = 100  # of one user that work
LABEL = 100


@dataclass(frozen=True)
class Wish:
    """What a user asks for: `limit` is `org` or `org/name`; where it is empty, or `life` None, as the maker's."""

    scope: Scope
    label: str = ""
    limit: str = ""
    life: timedelta | None = None


def own_tokens(session: Session, identity: Identity) -> list[TokenInfo]:
    """The user's tokens that the identity's covers, newest first, also those that are over. Raises RequestError."""
    _user(identity)
    mine = select(Token).where(Token.user_id == identity.user_id, Token.parent_id.is_(None))
    rows = session.scalars(mine.order_by(Token.id.desc())).all()
    return [tokens.token_info(session, row) for row in rows if _covers(session, identity, row)]


def make_own(session: Session, identity: Identity, wish: Wish, now: datetime) -> tuple[str, TokenInfo]:
    """Make a token of the user's; the secret is returned and kept nowhere.

    It ends with the one it is made with at the latest. Raises RequestError: 401, 403, 404 for an organization that is
    not here, 409 for too many.
    """
    maker = _maker(session, identity, now)
    if wish.scope > identity.scope:
        raise forbidden(
            f"A token for {identity.scope} makes none for {wish.scope}: use one for {wish.scope}."
        )
    only_org_id, only_repo = _limit(session, identity, wish.limit, maker)
    works = (Token.user_id == identity.user_id, Token.parent_id.is_(None), Token.revoked_at.is_(None))
    held = [row for row in session.scalars(select(Token).where(*works)) if not _ended(row, now)]
    if len(held) >= MOST:
        raise RequestError(409, f"You have {MOST} tokens that work: revoke one first.", code="Conflict")
    wanted = None if wish.life is None else now + wish.life
    ends = [date for date in (maker.expires_at, wanted) if date is not None]
    new = NewToken(
        scope=wish.scope,
        user_id=identity.user_id,
        only_org_id=only_org_id,
        only_repo=only_repo,
        label=wish.label.strip()[:LABEL],
        expires_at=min(ends, default=None),
    )
    secret, row = tokens.issue(session, new, now)
    return secret, tokens.token_info(session, row)


def revoke_own(session: Session, identity: Identity, number: str, now: datetime) -> TokenInfo:
    """Make one of the user's tokens useless at once. Raises RequestError: 401, 403, 404 for one out of reach."""
    maker = _maker(session, identity, now)
    row = (
        session.get(Token, int(number))
        if number.isascii() and number.isdigit() and len(number) < 10
        else None
    )
    known = row is not None and row.user_id == identity.user_id and row.parent_id is None
    if row is None or not known or not (row.id == maker.id or _covers(session, identity, row)):
        raise RequestError(404, f"You have no token {number[:20]!r}, or none that this one may revoke.")
    try:
        return tokens.revoke(session, row.id, now)
    except UsageError:
        raise RequestError(404, f"The token {row.id} is revoked already.") from None


def _user(identity: Identity) -> None:
    if identity.anonymous:
        raise unauthorized(f"Tokens of your own take one of a user's, and {identity.unknown}.")
    if identity.kind is not Kind.USER:
        raise forbidden(
            f"Tokens of your own take one of a user's: those of {identity.name!r} its owners make, on the admin page."
        )


def _maker(session: Session, identity: Identity, now: datetime) -> Token:
    """The token that the identity showed, or logged in with, locked: it cannot be revoked meanwhile."""
    _user(identity)
    assert identity.token_id is not None
    row = session.get_one(Token, identity.token_id)
    maker = session.get_one(Token, row.parent_id or row.id, with_for_update=True, populate_existing=True)
    if maker.revoked_at is not None or _ended(maker, now):
        raise unauthorized("The token that was sent is revoked or has expired.")
    return maker


def _ended(row: Token, now: datetime) -> bool:
    return row.expires_at is not None and row.expires_at <= now


def _limit(session: Session, identity: Identity, limit: str, maker: Token) -> tuple[int | None, str | None]:
    """The limit as the row has it; the maker's where none is asked for."""
    if not limit:
        return maker.only_org_id, maker.only_repo
    org, slash, name = limit.partition("/")
    wanted = check_repo_name(name) if slash else None
    if not identity.reaches(check_org(org), wanted):
        raise forbidden(f"This token is limited to {identity.limit!r} and makes none for {limit!r}.")
    try:
        return directory.find_org(session, org).id, wanted
    except UsageError as error:
        raise RequestError(404, str(error)) from None


def _covers(session: Session, identity: Identity, row: Token) -> bool:
    org = None if row.only_org_id is None else session.get_one(Org, row.only_org_id).name
    within = identity.only_org in (None, org) and identity.only_repo in (None, row.only_repo)
    return within and Scope[row.scope.upper()] <= identity.scope


def scope_of(word: object) -> Scope:
    """The scope that a word names. Raises RequestError 400."""
    if not isinstance(word, str) or word.upper() not in Scope.__members__:
        raise bad_request(f"A token is for one of {', '.join(map(str, Scope))}.")
    return Scope[word.upper()]
