"""The registry as an ASGI application: which address leads to which handler.

A repository is served under two of the Hub's types, `kernel` and `model`, because clients before
huggingface_hub 2.3 upload kernels as models.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from . import account_routes, lfs, read, write
from .audit_log import AuditLog
from .errors import RequestError, not_implemented
from .http import Service
from .oidc import exchange
from .pages.catalog import Catalog
from .pages.routes import error_page
from .pages.routes import routes as pages
from .place import Place, open_blobs
from .settings import upload_key
from .store import Store
from .throttle import Throttle
from .tuf import routes as tuf_routes
from .tuf.repository import TufRepository

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(place: Place) -> Starlette:
    """The application over what `place` names, which is created if it is new. Raises RegistryError."""
    store = Store(place.data, place.database)
    tuf = TufRepository(store, place.data)
    blobs = open_blobs(place, store)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with tuf_routes.kept_fresh(tuf):
            yield
        store.close()

    app = Starlette(
        routes=[*_routes(), *pages()],
        middleware=[
            Middleware(RawPath),
            Middleware(Throttle, store=store),
            Middleware(AuditLog, store=store),
        ],
        exception_handlers={RequestError: _refuse, HTTPException: _refuse_address, Exception: _fail},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = Service(store, blobs, upload_key(store), place.redirect)
    app.state.catalog = Catalog(store, blobs)
    app.state.tuf = tuf
    return app


class RawPath:
    """Route on the percent-encoded path, so that `refs%2Fheads%2Fv1` is one part of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        await self._app(scope, receive, send)


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
        Route("/api/agent-harnesses", read.agent_harnesses),
        Route("/api/whoami-v2", account_routes.whoami),
        Route("/api/organizations/{org}/overview", account_routes.organization),
        Route("/api/organizations/{org}/members", account_routes.members),
        Route("/api/audit", account_routes.audit_log),
        Route("/api/oidc/audience", exchange.audience),
        Route("/api/oidc/exchange", exchange.exchange, methods=["POST"]),
        Route("/api/validate-yaml", write.validate_yaml, methods=["POST"]),
        Route("/api/repos/create", write.create_repo, methods=["POST"]),
        Route("/api/repos/delete", write.delete_repo, methods=["DELETE"]),
        Route(repo, read.info),
        Route(repo + "/revision/{revision}", read.info),
        Route(repo + "/refs", read.refs),
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
            Route(objects + "/batch", lfs.batch, methods=["POST"]),
            Route(objects + "/verify", lfs.verify, methods=["POST"]),
            Route(objects + "/{oid}", lfs.upload, methods=["PUT"]),
        ]
    return routes


def _unknown_api(request: Request) -> Response:
    raise not_implemented(f"This hub does not implement {request.method} {request.url.path}.")


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_page(request, error)


def _refuse_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path} is no address of this hub."
    return error_page(request, RequestError(error.status_code, message))


def _fail(request: Request, _error: Exception) -> Response:
    message = (
        "The hub failed to answer this request; the reason is in its log. Try again, then tell its operator."
    )
    return error_page(request, RequestError(500, message))
