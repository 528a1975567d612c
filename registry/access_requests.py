"""Requests for gated repositories: asked for, granted, accepted, rejected, listed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .access import ACCEPTED, fetch, repo_info
from .accounts.may import Action
from .auth import identity_of
from .clock import iso, utc_now
from .errors import RequestError, bad_request, unauthorized
from .http import json_body, param, repo_of, service, writer
from .locks import insert_missing, put
from .models import RepoAccess
from .names import check_org
from .store import RepoInfo

PENDING, REJECTED = "pending", "rejected"
_STATES = (PENDING, ACCEPTED, REJECTED)


def auth_check(request: Request) -> Response:
    """Whether the request may have the repository's files."""
    fetch(request, repo_info(request))
    return JSONResponse({})


def write_check(request: Request) -> Response:
    """Whether the request may write to the repository."""
    writer(request, repo_of(request).org)
    repo_info(request)
    return JSONResponse({})


def ask_access(request: Request) -> Response:
    """Ask for access: granted at once where the gate is automatic."""
    found = _gated(repo_info(request))
    who = identity_of(request)
    if who.anonymous:
        raise unauthorized("Asking for access takes a token: it says who asks.")
    with service(request).store.write() as session:
        insert_missing(
            session,
            RepoAccess,
            [_row(found, who.name, ACCEPTED if found.gated == "auto" else PENDING, None)],
        )
    return JSONResponse({})


def requests(request: Request) -> Response:
    """Those who asked, by state; for the repository's owners."""
    found = _owned(request)
    state = param(request, "state")
    if state not in _STATES:
        raise bad_request(f"Requests are {', '.join(_STATES)}, not {state!r}.")
    query = (
        select(RepoAccess)
        .where(RepoAccess.repo_id == found.repo_id, RepoAccess.status == state)
        .order_by(RepoAccess.created_at, RepoAccess.account)
    )
    with service(request).store.read() as session:
        return JSONResponse([_describe(row) for row in session.scalars(query)])


async def grant_access(request: Request) -> Response:
    """Let somebody in who need not have asked."""
    account = check_org((await json_body(request)).get("user"))
    return await run_in_threadpool(_decide, request, account, ACCEPTED, None, True)


async def handle_access(request: Request) -> Response:
    """Accept, reject or take back to pending."""
    body = await json_body(request)
    account, state, reason = (
        body.get("user") or body.get("requestId"),
        body.get("status"),
        body.get("rejectionReason"),
    )
    if state not in _STATES:
        raise bad_request(f"A request becomes one of {', '.join(_STATES)}, not {state!r}.")
    if reason is not None and not (isinstance(reason, str) and len(reason) <= 200):
        raise bad_request("A reason is a text of at most 200 characters.")
    return await run_in_threadpool(_decide, request, check_org(account), state, reason, False)


def _decide(request: Request, account: str, state: str, reason: str | None, grants: bool) -> Response:
    found = _owned(request)
    with service(request).store.write() as session:
        row = session.get(RepoAccess, (found.repo_id, account), with_for_update=True)
        if row is None and not grants:
            raise RequestError(404, f"{account!r} did not ask for {found.repo}: grant access instead.")
        if row is not None and row.status == state:
            raise RequestError(400 if grants else 404, f"The request of {account!r} is {state} already.")
        if row is None:
            put(session, RepoAccess, _row(found, account, state, reason))
        else:
            row.status, row.reason = state, reason
    return JSONResponse({})


def _row(found: RepoInfo, account: str, state: str, reason: str | None) -> dict[str, Any]:
    return {
        "repo_id": found.repo_id,
        "account": account,
        "status": state,
        "reason": reason,
        "created_at": utc_now(),
    }


def _owned(request: Request) -> RepoInfo:
    writer(request, repo_of(request).org, action=Action.MANAGE)
    return _gated(repo_info(request))


def _gated(found: RepoInfo) -> RepoInfo:
    if not found.gated:
        raise bad_request(f"{found.repo} is not gated: there is nothing to ask for.")
    return found


def _describe(row: RepoAccess) -> dict[str, Any]:
    return {
        "requestId": row.account,
        "user": {"user": row.account, "fullname": row.account},
        "status": row.status,
        "timestamp": iso(row.created_at),
    }
