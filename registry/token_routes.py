"""A user's own tokens over the wire. The Hub has no such address; the words are those of its `whoami-v2`.

GET    /api/settings/tokens        what there is, without secrets
POST   /api/settings/tokens        {"role", "displayName", "limit", "expiresIn": seconds}: a new one, shown this once
DELETE /api/settings/tokens/{id}   useless at once
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .accounts.own_tokens import Wish, make_own, own_tokens, revoke_own, scope_of
from .accounts.tokens import TokenInfo
from .auth import identity_of, note
from .clock import iso, utc_now
from .errors import bad_request
from .http import json_body, param, service

_LONGEST = 10 * 365 * 86400


def list_own_tokens(request: Request) -> Response:
    """The user's tokens that the one sent covers, newest first, without their secrets."""
    identity = identity_of(request)
    with service(request).store.read() as session:
        found = own_tokens(session, identity)
    return JSONResponse([_described(token) for token in found])


async def make_own_token(request: Request) -> Response:
    """Make a token of the user's, for no more than the one sent is for; the answer alone ever shows it."""
    body = await json_body(request)

    def make() -> Response:
        identity = identity_of(request)
        request.state.subject = identity.name
        with service(request).store.write() as session:
            secret, info = make_own(session, identity, _wish(body), utc_now())
        note(request, token=info.id, scope=info.scope, limit=info.limit)
        return JSONResponse(_described(info) | {"token": secret}, headers={"Cache-Control": "no-store"})

    return await run_in_threadpool(make)


def revoke_own_token(request: Request) -> Response:
    """Make one of the user's tokens useless at once, with the logins made with it."""
    identity = identity_of(request)
    request.state.subject = identity.name
    with service(request).store.write() as session:
        info = revoke_own(session, identity, param(request, "id"), utc_now())
    note(request, token=info.id)
    return JSONResponse({"revoked": info.id})


def _wish(body: dict[str, Any]) -> Wish:
    label, limit, seconds = body.get("displayName", ""), body.get("limit", ""), body.get("expiresIn")
    if not isinstance(label, str) or not isinstance(limit, str):
        raise bad_request("displayName and limit (org or org/name) are texts.")
    if seconds is not None and not (type(seconds) is int and 0 < seconds <= _LONGEST):
        raise bad_request(f"expiresIn is a number of seconds from 1 to {_LONGEST}.")
    return Wish(
        scope_of(body.get("role", "read")),
        label,
        limit,
        None if seconds is None else timedelta(seconds=seconds),
    )


def _described(token: TokenInfo) -> dict[str, Any]:
    dates = {
        "createdAt": token.created_at,
        "expiresAt": token.expires_at,
        "revokedAt": token.revoked_at,
        "lastUsedAt": token.last_used_at,
    }
    return {
        "id": token.id,
        "displayName": token.label,
        "role": token.scope,
        "limit": token.limit,
        "hint": token.hint,
    } | {name: None if date is None else iso(date) for name, date in dates.items()}
