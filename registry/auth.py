"""Who a request comes from, and whether it may do what it asks for: the edge around `accounts`.

A client shows its token in the Authorization header. A browser has no such header: it logs in with a token
and gets a cookie instead, good for hours and for pages alone; clients' addresses do not look at it, so a
foreign page cannot make a browser write. The cookie holds a secret of its own of 256 random bits, kept
here as a hash like every token: nothing in it can be forged or read, and revoking the token ends it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import Response

from .accounts import tokens
from .accounts.audit import Actor, record
from .accounts.identity import ANONYMOUS, Identity, Kind
from .accounts.may import Action, Cause, Refused, RepoFacts, may
from .accounts.tokens import NewToken, utc_now
from .audit_log import actor_name
from .errors import RequestError, forbidden, gated, repo_not_found, unauthorized
from .models import Token
from .store import Store
from .throttle import address_of

COOKIE = "khub_login"


@dataclass(frozen=True)
class Seen:
    """The hour in which this process last noted that a token was used."""

    hours: dict[int, datetime] = field(default_factory=dict)

    def note(self, store: Store, token_id: int, now: datetime) -> None:
        """Write it down once in an hour."""
        hour = now.replace(minute=0, second=0)
        if self.hours.get(token_id) != hour:
            with store.write() as session:
                tokens.mark_used(session, token_id, now)
            self.hours[token_id] = hour


def identity_of(request: Request) -> Identity:
    """Who the request's token speaks for; anonymous without one that works. Looked up once for a request."""
    known: Identity | None = getattr(request.state, "identity", None)
    if known is None:
        store, now = _store(request), utc_now()
        with store.read() as session:
            known = tokens.identify(session, request.headers.get("authorization"), now)
        if known.token_id is not None:
            request.app.state.service.seen.note(store, known.token_id, now)
        request.state.identity = known
    return known


def authorize(request: Request, action: Action, facts: RepoFacts | None = None) -> Identity:
    """The request's identity, if it may do this. Raises RequestError: 401, 403, or 404 for what is hidden."""
    identity = identity_of(request)
    if facts is not None and action is not Action.READ:
        request.state.subject = str(facts)  # for the audit log
    require(identity, action, facts)
    return identity


def require(identity: Identity, action: Action, facts: RepoFacts | None = None) -> None:
    """Nothing, if the identity may do this. Raises RequestError."""
    verdict = may(identity, action, facts)
    if isinstance(verdict, Refused):
        raise _refusal(verdict, identity, facts)


def _refusal(refused: Refused, identity: Identity, facts: RepoFacts | None) -> RequestError:
    if refused.cause is Cause.CREDENTIALS:
        return unauthorized(refused.reason)
    if refused.cause is Cause.HIDDEN:
        return repo_not_found(str(facts))
    if refused.cause is Cause.GATED:
        return gated(refused.reason, known=not identity.anonymous)
    return forbidden(refused.reason)


def actor_of(request: Request, identity: Identity) -> Actor:
    """The identity as the audit log names it, with the request's address."""
    return Actor(actor_name(identity), address_of(request.scope), identity.token_id)


def note(request: Request, **detail: Any) -> None:
    """Add what a handler knows to the request's entry in the audit log."""
    request.state.detail = {**getattr(request.state, "detail", {}), **detail}


# -- browsers


def log_in(request: Request, secret: str) -> tuple[str, datetime]:
    """Exchange a token for the content of a login cookie and its end. Raises RequestError 401."""
    store, now = _store(request), utc_now()
    with store.write() as session:
        identity = tokens.identify_secret(session, secret.strip(), now, login=False)
        if identity.token_id is None:
            raise unauthorized(f"To log in takes a token and {identity.unknown}.")
        if identity.kind is Kind.PUBLISHER:
            raise forbidden(
                "A token of a CI run is for uploading: log in with a user's or an organization's."
            )
        parent = session.get_one(Token, identity.token_id)
        until = now + tokens.SESSION_LIFE
        new = NewToken(
            scope=identity.scope,
            org_id=parent.org_id,
            user_id=parent.user_id,
            only_org_id=parent.only_org_id,
            only_repo=parent.only_repo,
            label="login",
            expires_at=until if parent.expires_at is None else min(until, parent.expires_at),
            parent_id=parent.id,
        )
        cookie, row = tokens.issue(session, new, now)
        tokens.forget_ended(session, row.id, now)
        tokens.mark_used(session, parent.id, now)
        record(session, actor_of(request, identity), "login", identity.name)
        assert row.expires_at is not None
        return cookie, row.expires_at


def session(request: Request) -> Identity:
    """Who is logged in in this browser; anonymous if nobody. Only for pages."""
    secret = request.cookies.get(COOKIE)
    if not secret:
        return ANONYMOUS
    with _store(request).read() as opened:
        return tokens.identify_secret(opened, secret, utc_now(), login=True)


def log_out(request: Request) -> None:
    """End the browser's login for good, wherever the cookie has got to."""
    secret = request.cookies.get(COOKIE)
    if secret:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        mine = update(Token).where(Token.sha256 == digest, Token.parent_id.is_not(None))
        with _store(request).write() as opened:
            opened.execute(mine.values(revoked_at=utc_now()))


def set_cookie(request: Request, response: Response, cookie: str, until: datetime) -> None:
    """Give the browser its login: no script reads it, no foreign page's form sends it."""
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=int((until - utc_now()).total_seconds()),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def csrf_token(request: Request) -> str:
    """What a form of this login carries to show that it is ours."""
    secret = request.cookies.get(COOKIE, "")
    return hmac.new(secret.encode(), b"form", hashlib.sha256).hexdigest()


def check_csrf(request: Request, sent: object) -> None:
    """Raises RequestError 403 unless the form is one that this login was shown."""
    secret = request.cookies.get(COOKIE)
    if (
        not secret
        or not isinstance(sent, str)
        or not hmac.compare_digest(csrf_token(request).encode(), sent.encode())
    ):
        raise forbidden("This form is not of this login: open the page again and send it from there")


def _store(request: Request) -> Store:
    store: Store = request.app.state.service.store
    return store
