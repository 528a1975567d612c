"""The admin pages: organizations, members, tokens, limits and the audit log, for who may manage them.

What is shown and done is what `may` allows the person who is signed in; every change carries the login's own
mark (CSRF) and leaves an entry in the audit log, in the transaction that makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hub_loader.errors import UsageError

from ..accounts import directory, tokens
from ..accounts.audit import Actor, events, record
from ..accounts.identity import Identity, Role, Scope
from ..accounts.limits import limits_of, used_bytes
from ..accounts.may import Action, Allowed, RepoFacts, may
from ..accounts.settings import read_settings
from ..accounts.tokens import NewToken
from ..auth import actor_of, check_csrf, csrf_token, require, session
from ..clock import utc_now
from ..errors import RequestError, bad_request
from ..http import param, service
from ..models import Token
from .forms import read_form
from .render import page

_EVENTS = 100
_TOKENS = 200
_LIFE = {"": None, "1": timedelta(days=1), "30": timedelta(days=30), "365": timedelta(days=365)}


def overview(request: Request) -> Response:
    """The organizations somebody manages; for an operator all of them, the users and the hub's log."""
    identity = session(request)
    if identity.anonymous:
        return RedirectResponse("/-/login", 303)
    operator = isinstance(may(identity, Action.MANAGE_HUB), Allowed)
    with service(request).store.read() as opened:
        orgs = [org for org in directory.list_orgs(opened) if operator or _manages(identity, org.name)]
        return _page(
            request,
            "admin.html",
            identity,
            orgs=orgs,
            operator=operator,
            users=directory.list_users(opened) if operator else [],
            user_tokens=_tokens_of_users(opened) if operator else [],
            log=events(opened, limit=_EVENTS) if operator else [],
        )


def organization(request: Request) -> Response:
    """One organization. Raises RequestError 401, 403 or 404."""
    return _organization(request, param(request, "org"))


def _organization(request: Request, org: str, *, secret: str = "", problem: str = "") -> Response:
    identity = session(request)
    require(identity, Action.MANAGE_ORG, RepoFacts(org))
    with service(request).store.read() as opened:
        row = _found(lambda: directory.find_org(opened, org))
        return _page(
            request,
            "admin_org.html",
            identity,
            status=400 if problem else 200,
            org=directory.org_info(opened, row),
            operator=isinstance(may(identity, Action.MANAGE_HUB), Allowed),
            members=directory.list_members(opened, org),
            tokens=tokens.list_tokens(opened, org=org)[-_TOKENS:][::-1],
            limits=limits_of(row, read_settings(opened)),
            used=used_bytes(opened, row.id),
            log=events(opened, org=org, limit=_EVENTS),
            secret_token=secret,
            problem=problem,
        )


async def make_token(request: Request) -> Response:
    """Make a token of the organization; the page that answers is the only one that ever shows it."""
    fields, org = await _fields(request), param(request, "org")

    def make() -> Response:
        actor = _manager(request, org)
        if fields.get("scope") not in ("read", "write") or fields.get("days", "") not in _LIFE:
            raise bad_request(
                "A token is for reading or writing, and lives for one of the times in the form."
            )
        life, now = _LIFE[fields.get("days", "")], utc_now()
        with service(request).store.write() as opened:
            row = _found(lambda: directory.find_org(opened, org))
            scope = Scope[fields["scope"].upper()]
            label = fields.get("label", "")[:100].strip()
            until = None if life is None else now + life
            new = NewToken(scope, org_id=row.id, label=label, expires_at=until)
            secret, token = tokens.issue(opened, new, now)
            record(opened, actor, "token.create", org, token=token.id, scope=str(scope))
        return _organization(request, org, secret=secret)

    return await run_in_threadpool(make)


async def revoke_token(request: Request) -> Response:
    """Make a token useless at once; an organization's by who manages that, a user's by an operator."""
    await _fields(request)
    number = param(request, "id")

    def revoke() -> Response:
        identity = session(request)
        with service(request).store.write() as opened:
            row = (
                opened.get(Token, int(number))
                if number.isascii() and number.isdigit() and len(number) < 10
                else None
            )
            if row is None or row.parent_id is not None:
                require(identity, Action.MANAGE_HUB)
                raise RequestError(404, f"There is no token {number[:20]}.")
            info = tokens.token_info(opened, row)
            if info.org is None:
                require(identity, Action.MANAGE_HUB)
            else:
                require(identity, Action.MANAGE_ORG, RepoFacts(info.org))
            _found(lambda: tokens.revoke(opened, row.id, utc_now()))
            record(opened, actor_of(request, identity), "token.revoke", info.owner, token=row.id)
        return RedirectResponse(_address(info.org), 303)

    return await run_in_threadpool(revoke)


async def change_member(request: Request) -> Response:
    """Give a user a role in the organization, or take it away."""
    fields, org = await _fields(request), param(request, "org")

    def change() -> Response:
        actor = _manager(request, org)
        user, role = fields.get("user", "").strip(), fields.get("role", "")
        try:
            with service(request).store.write() as opened:
                if role == "none":
                    directory.remove_member(opened, actor, org, user)
                elif role.upper() in Role.__members__:
                    directory.set_role(opened, actor, org, user, Role[role.upper()])
                else:
                    raise bad_request("A role is reader, writer or owner.")
        except UsageError as error:
            return _organization(request, org, problem=str(error))
        return RedirectResponse(_address(org), 303)

    return await run_in_threadpool(change)


async def change_trust(request: Request) -> Response:
    """Say to clients whether the organization's kernels may run without a question; an operator's to decide."""
    fields, org = await _fields(request), param(request, "org")

    def change() -> Response:
        identity = session(request)
        require(identity, Action.MANAGE_HUB)
        with service(request).store.write() as opened:
            trusted = fields.get("trusted") == "yes"
            _found(lambda: directory.set_trusted(opened, actor_of(request, identity), org, trusted))
        return RedirectResponse(_address(org), 303)

    return await run_in_threadpool(change)


async def _fields(request: Request) -> dict[str, str]:
    """A form of this very login. Raises RequestError 403 for any other."""
    fields = await read_form(request)
    check_csrf(request, fields.get("csrf"))
    return fields


def _manager(request: Request, org: str) -> Actor:
    identity = session(request)
    require(identity, Action.MANAGE_ORG, RepoFacts(org))
    return actor_of(request, identity)


def _manages(identity: Identity, org: str) -> bool:
    return isinstance(may(identity, Action.MANAGE_ORG, RepoFacts(org)), Allowed)


def _tokens_of_users(opened: Session) -> list[tokens.TokenInfo]:
    return [token for token in tokens.list_tokens(opened) if token.org is None][-_TOKENS:][::-1]


def _found(find: Callable[[], Any]) -> Any:
    """What `find` returns. Raises RequestError 404 where the command line would say that there is none."""
    try:
        return find()
    except UsageError as error:
        raise RequestError(404, str(error)) from None


def _address(org: str | None) -> str:
    return "/-/admin" if org is None else f"/-/admin/orgs/{quote(org, safe='')}"


def _page(
    request: Request, template: str, identity: Identity, *, status: int = 200, **context: Any
) -> Response:
    return page(
        request,
        template,
        status,
        secret=True,
        identity=identity,
        csrf=csrf_token(request),
        now=utc_now(),
        **context,
    )
