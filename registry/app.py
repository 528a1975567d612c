"""The registry as an ASGI application: which address leads to which handler.

A repository is served under two of the Hub's types, `kernel` and `model`, because clients before
huggingface_hub 2.3 upload kernels as models.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from . import (
    access_requests,
    account_routes,
    discussions,
    history,
    lfs,
    listing,
    ownership,
    read,
    token_routes,
    write,
)
from .access import see
from .audit_log import AuditLog
from .downloads import FLUSH_SECONDS
from .edge import Edge, Limits
from .errors import RepoMovedError, RequestError, conflict, not_implemented, repo_not_found, unavailable
from .http import Service, param, service
from .locks import COLLISION, is_collision
from .mirror import MirrorSettings, PullThrough
from .mirror_header import MirrorHeader
from .names import RepoName
from .oidc import exchange
from .openapi import openapi
from .pages.catalog import Catalog
from .pages.routes import error_page
from .pages.routes import routes as pages
from .place import Place, open_blobs
from .settings import upload_key
from .store import Store
from .telemetry.app import Observed
from .telemetry.metrics_page import metrics_page
from .telemetry.options import Options
from .telemetry.ready import readyz
from .telemetry.route_names import named
from .throttle import Throttle
from .tuf import routes as tuf_routes
from .tuf.repository import TufRepository
from .upkeep import upkeep

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(
    place: Place,
    limits: Limits | None = None,
    options: Options | None = None,
    mirror: MirrorSettings | None = None,
) -> Observed:
    """The application over what `place` names, which is created if it is new.

    Raises RegistryError, UsageError, MissingExtraError.
    """
    limits = limits or Limits()
    store = Store(place.data, place.database)
    tuf = TufRepository(store, place.data)
    blobs = open_blobs(place, store)
    pulling = None if mirror is None else PullThrough(mirror, store, blobs)
    made = Service(store, blobs, upload_key(store), place.redirect, limits, mirror=pulling)

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        counting = asyncio.create_task(_flush_downloads(made))
        async with upkeep(store, blobs), tuf_routes.kept_fresh(tuf):
            yield
        counting.cancel()
        with suppress(asyncio.CancelledError):
            await counting
        made.downloads.flush(store)
        if pulling is not None:
            pulling.close()
        await run_in_threadpool(app.stop_observing)
        store.close()

    protocol = _routes()
    app = Observed(
        store,
        blobs,
        place.data,
        options or Options(),
        routes=named([Route("/readyz", readyz), Route("/metrics", metrics_page), *protocol, *pages()]),
        middleware=[
            Middleware(Edge, limits=limits),
            Middleware(Throttle, store=store),
            Middleware(AuditLog, store=store),
            *([Middleware(MirrorHeader)] if pulling is not None else []),
        ],
        exception_handlers={
            RepoMovedError: _redirect,
            RequestError: _refuse,
            HTTPException: _refuse_address,
            ClientDisconnect: _gone,
            DBAPIError: _database_failed,
            PoolTimeoutError: _unavailable,
            Exception: _fail,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = made
    app.state.protocol = protocol
    app.state.catalog = Catalog(store, blobs)
    app.state.tuf = tuf
    return app


async def _flush_downloads(made: Service) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        await run_in_threadpool(made.downloads.flush, made.store)


class _Kind(Convertor[str]):
    """The Hub's word for a repository's type in an address."""

    regex = "kernels|models"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("kind", _Kind())


def _routes() -> list[Route]:
    repo = "/api/{kind:kind}/{org}/{name}"
    routes = [
        Route("/healthz", read.healthz),
        Route("/openapi.json", openapi),
        Route("/api/agent-harnesses", read.agent_harnesses),
        Route("/api/whoami-v2", account_routes.whoami),
        Route("/api/organizations/{org}/overview", account_routes.organization),
        Route("/api/organizations/{org}/members", account_routes.members),
        Route("/api/audit", account_routes.audit_log),
        Route("/api/settings/tokens", token_routes.list_own_tokens),
        Route("/api/settings/tokens", token_routes.make_own_token, methods=["POST"]),
        Route("/api/settings/tokens/{id}", token_routes.revoke_own_token, methods=["DELETE"]),
        Route("/api/oidc/audience", exchange.audience),
        Route("/api/oidc/exchange", exchange.exchange, methods=["POST"]),
        Route("/api/validate-yaml", write.validate_yaml, methods=["POST"]),
        Route("/api/repos/create", write.create_repo, methods=["POST"]),
        Route("/api/repos/delete", write.delete_repo, methods=["DELETE"]),
        Route("/api/repos/move", ownership.move_repo, methods=["POST"]),
        Route("/api/{kind:kind}", listing.repos),
        Route("/api/{kind:kind}/{name}", _no_org),
        Route(repo, read.info),
        Route(repo + "/revision/{revision}", read.info),
        Route(repo + "/refs", read.refs),
        Route(repo + "/commits/{revision}", history.commits),
        Route(repo + "/super-squash/{branch}", history.super_squash, methods=["POST"]),
        Route(repo + "/settings", ownership.change_settings, methods=["PUT"]),
        Route(repo + "/auth-check", access_requests.auth_check),
        Route(repo + "/auth-check/write", access_requests.write_check),
        Route(repo + "/user-access-request/grant", access_requests.grant_access, methods=["POST"]),
        Route(repo + "/user-access-request/handle", access_requests.handle_access, methods=["POST"]),
        Route(repo + "/user-access-request/{state}", access_requests.requests),
        Route(repo + "/discussions", discussions.discussions),
        Route(repo + "/discussions", discussions.create_pull, methods=["POST"]),
        Route(repo + "/discussions/{num}", discussions.discussion),
        Route(repo + "/discussions/{num}/merge", discussions.merge_pull, methods=["POST"]),
        Route(repo + "/discussions/{num}/status", discussions.set_pull_status, methods=["POST"]),
        Route(repo + "/discussions/{num}/{rest:path}", discussions.no_comments, methods=["POST"]),
        Route(repo + "/tree/{revision}", read.tree),
        Route(repo + "/tree/{revision}/{path:path}", read.tree),
        Route(repo + "/paths-info/{revision}", read.paths_info, methods=["POST"]),
        Route(repo + "/branch/{branch}", write.create_branch, methods=["POST"]),
        Route(repo + "/branch/{branch}", write.delete_branch, methods=["DELETE"]),
        Route(repo + "/tag/{revision}", write.create_tag, methods=["POST"]),
        Route(repo + "/tag/{revision}", write.delete_tag, methods=["DELETE"]),
        Route(repo + "/preupload/{revision}", write.preupload, methods=["POST"]),
        Route(repo + "/commit/{revision}", write.commit, methods=["POST"]),
        Route("/api/{rest:path}", _unknown_api, methods=_METHODS),
        *tuf_routes.routes(),
    ]
    for files in ("/{kind:kind}/{org}/{name}", "/{org}/{name}"):  # without a type it is a model
        objects = files + ".git/info/lfs/objects"
        routes += [
            Route(files + "/resolve/{revision}/{path:path}", read.resolve),
            Route(files + "/ask-access", access_requests.ask_access, methods=["POST"]),
            Route(objects + "/batch", lfs.batch, methods=["POST"]),
            Route(objects + "/verify", lfs.verify, methods=["POST"]),
            Route(objects + "/{oid}", lfs.upload, methods=["PUT"]),
        ]
    routes.append(Route("/{name}/resolve/{revision}/{path:path}", _no_org))
    return routes


def _no_org(request: Request) -> Response:
    raise repo_not_found(param(request, "name"))  # on the Hub a few old models have no organization


def _unknown_api(request: Request) -> Response:
    raise not_implemented(f"This hub does not implement {request.method} {request.url.path}.")


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_page(request, error)


def _redirect(request: Request, error: Exception) -> Response:
    """The same request at the repository's new name, for those who may see it."""
    assert isinstance(error, RepoMovedError)
    try:
        see(request, service(request).store.repo(RepoName(error.org, error.name)))
    except RequestError:  # in the very form of what is not there
        return error_page(request, repo_not_found(error.old))
    if "org" not in request.path_params:  # the name stands in the body
        return RequestError(404, error.message, code="RepoNotFound").response()
    response = error.response()
    old = "/{org}/{name}".format(**request.path_params)  # the path names the repository, once
    path = request.scope["path"].replace(old, f"/{quote(error.org)}/{quote(error.name)}", 1)
    query = request.scope["query_string"].decode("ascii")
    response.headers["Location"] = f"{path}?{query}" if query else path
    return response


def _refuse_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path} is no address of this hub."
    return error_page(request, RequestError(error.status_code, message))


def _gone(_request: Request, _error: Exception) -> Response:
    return Response(
        status_code=400
    )  # nobody reads it; without it each broken upload would be a failure in the log


def _database_failed(request: Request, error: Exception) -> Response:
    if _is_lost_connection(error):
        return _unavailable(request, error)
    if is_collision(error):
        logging.getLogger(__name__).warning("Two changes at once: %s", " ".join(str(error).split()))
        return error_page(request, conflict(COLLISION))
    raise error


def _is_lost_connection(error: BaseException | None) -> bool:
    """Whether the database is gone or busy, rather than asked for something wrong."""
    if isinstance(error, PoolTimeoutError):  # all connections are waiting for it
        return True
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    )


def _unavailable(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("The database does not answer: %s", " ".join(str(error).split()))
    return error_page(request, unavailable("The hub's database does not answer: try again in a while."))


def _fail(request: Request, error: Exception) -> Response:
    # Of a middleware, which no other handler sees; the framework wraps what one raised on the way out.
    if _is_lost_connection(error) or _is_lost_connection(error.__cause__):
        return _unavailable(request, error)
    message = (
        "The hub failed to answer this request; the reason is in its log. Try again, then tell its operator."
    )
    return error_page(request, RequestError(500, message))
