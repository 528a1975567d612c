"""The settings page: somebody's own tokens, made, listed and revoked with the rights of the login."""

from __future__ import annotations

from datetime import timedelta

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..accounts.audit import record
from ..accounts.identity import Kind, Scope
from ..accounts.own_tokens import Wish, make_own, own_tokens, revoke_own, scope_of
from ..auth import actor_of, check_csrf, csrf_token, session
from ..clock import utc_now
from ..errors import RequestError, bad_request
from ..http import param, service
from .forms import read_form
from .render import page

ADDRESS = "/-/settings"
_LIFE = {"": None, "1": timedelta(days=1), "30": timedelta(days=30), "365": timedelta(days=365)}


def settings(request: Request) -> Response:
    """The page; who is not signed in is asked to."""
    return _settings(request)


def _settings(request: Request, *, secret: str = "", problem: str = "", status: int = 200) -> Response:
    identity = session(request)
    if identity.anonymous:
        return RedirectResponse(f"/-/login?next={ADDRESS}", 303)
    is_user = identity.kind is Kind.USER
    with service(request).store.read() as opened:
        return page(
            request,
            "settings.html",
            status,
            secret=True,
            identity=identity,
            is_user=is_user,
            tokens=own_tokens(opened, identity) if is_user else [],
            scopes=[str(scope) for scope in Scope if scope <= identity.scope],
            secret_token=secret,
            problem=problem,
            csrf=csrf_token(request),
            now=utc_now(),
        )


async def make_token(request: Request) -> Response:
    """Make a token of the one who is signed in; the page that answers is the only one that ever shows it."""
    fields = await read_form(request)
    check_csrf(request, fields.get("csrf"))

    def make() -> Response:
        identity, now = session(request), utc_now()
        if fields.get("days", "") not in _LIFE:
            raise bad_request("A token lives for one of the times in the form.")
        wish = Wish(
            scope_of(fields.get("scope")),
            fields.get("label", ""),
            fields.get("limit", "").strip(),
            _LIFE[fields.get("days", "")],
        )
        try:
            with service(request).store.write() as opened:
                secret, info = make_own(opened, identity, wish, now)
                actor = actor_of(request, identity)
                record(
                    opened,
                    actor,
                    "token.create",
                    identity.name,
                    token=info.id,
                    scope=info.scope,
                    limit=info.limit,
                )
        except RequestError as error:
            return _settings(request, problem=error.message, status=error.status)
        return _settings(request, secret=secret)

    return await run_in_threadpool(make)


async def revoke_token(request: Request) -> Response:
    """Make one of the tokens of the one who is signed in useless at once."""
    check_csrf(request, (await read_form(request)).get("csrf"))

    def revoke() -> Response:
        identity = session(request)
        with service(request).store.write() as opened:
            info = revoke_own(opened, identity, param(request, "id"), utc_now())
            record(opened, actor_of(request, identity), "token.revoke", identity.name, token=info.id)
        return RedirectResponse(ADDRESS, 303)

    return await run_in_threadpool(revoke)
