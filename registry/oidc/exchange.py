"""`POST /api/oidc/exchange`: an issuer's token of a CI run for a token of ours that uploads for minutes.

The request is `{"token": JWT, "repo": "org/name"}` for a token of one repository, or `{"token": JWT,
"organization": "org"}` for one of all that the publisher may upload to. The answer is `{"token", "expires",
"organization", "repo"}`.

The audience that the issuer's token must name is the address this hub is known by, from its settings and
never from the request: so a token that a run handed to another hub, or that another hub asked it for, is
worth nothing here.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..accounts.audit import Actor, record
from ..accounts.directory import find_org
from ..accounts.identity import Scope
from ..accounts.settings import read_settings
from ..accounts.tokens import NewToken, forget_ended, issue
from ..clock import utc_now
from ..errors import RequestError, bad_request, forbidden, unauthorized
from ..http import json_body, service
from ..names import check_org, check_repo_name
from ..throttle import address_of
from .configured import list_publishers, use_up
from .publishers import NotARunError, Run, find_publisher, run_of
from .verify import expiry, verify

LIFETIME = timedelta(minutes=15)
logger = logging.getLogger(__name__)


def audience(request: Request) -> Response:
    """The audience for people who look for it; our client does not ask, because the hub could lie."""
    return JSONResponse({"audience": _audience(request)})


async def exchange(request: Request) -> Response:
    """The exchange; see above."""
    body = await json_body(request)
    return JSONResponse(await run_in_threadpool(_exchange, request, body))


def _exchange(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    org, kernel = _wanted(body)
    store = service(request).store
    with store.read() as session:
        issuers = {publisher.issuer for publisher in list_publishers(session)}
    claims = verify(body.get("token"), issuers, _audience(request), service(request).issuers)
    try:
        run = run_of(claims)
    except NotARunError as error:
        raise unauthorized(f"The issuer's token is not of a CI run: {error}.") from None
    address, now = address_of(request.scope), utc_now()
    with store.write() as session:
        publisher = find_publisher(run, org, kernel, list_publishers(session, org))
        if isinstance(publisher, str):
            logger.warning("refused an upload token for %s to %s: %s", org, run.repository, publisher)
            raise forbidden(f"This run may not upload to {org!r}: {publisher}.")
        use_up(session, run.issuer, claims["jti"], expiry(claims))
        row = find_org(session, org)
        new = NewToken(
            scope=Scope.WRITE,
            org_id=row.id,
            only_org_id=row.id,
            only_repo=kernel,
            label=_label(run),
            expires_at=now + LIFETIME,
            publisher_id=publisher.id,
        )
        secret, token = issue(session, new, now)
        forget_ended(session, token.id, now)
        detail: dict[str, Any] = {
            "publisher": publisher.id,
            "token": token.id,
            "run": run.run_id,
            "commit": run.sha,
        }
        detail |= {"ref": run.ref, "workflow": run.workflow, "environment": run.environment}
        subject = org if kernel is None else f"{org}/{kernel}"
        record(session, Actor(f"oidc:{run.repository}", address), "oidc.exchange", subject, **detail)
    repo = None if kernel is None else f"{org}/{kernel}"
    return {
        "token": secret,
        "expires": f"{(now + LIFETIME).isoformat()}Z",
        "organization": org,
        "repo": repo,
    }


def _wanted(body: dict[str, Any]) -> tuple[str, str | None]:
    repo, org = body.get("repo"), body.get("organization")
    if isinstance(repo, str) and org is None:
        owner, _, name = repo.partition("/")
        return check_org(owner), check_repo_name(name)
    if isinstance(org, str) and repo is None:
        return check_org(org), None
    raise bad_request("Say what to upload to: `repo` is 'org/name', or `organization` is 'org'; not both.")


def _audience(request: Request) -> str:
    with service(request).store.read() as session:
        url = read_settings(session).public_url
    if url is None:
        raise RequestError(
            503,
            "This hub takes no CI tokens yet: its operator has to say which address it is known by, with "
            "`khub registry settings --public-url URL`.",
            code="NotConfigured",
        )
    return url


def _label(run: Run) -> str:
    return f"{run.repository} run {run.run_id}"[:200]
