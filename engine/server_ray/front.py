"""The application that clients reach: it checks keys, stops in order, and passes requests on to replicas."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..server.drain import Drain, Draining
from ..server.errors import RequestError, style_of
from ..server.guard import Keys, check_scraper
from ..server.http import LARGE, read_bytes, watched
from ..server.options import Options
from . import roster
from .asked import Asked
from .forward import Call
from .prefix import keys_of
from .scrape import scrape

# Of this connection, or of who may ask; a replica needs neither.
_DROPPED = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"authorization", b"x-api-key", b"expect"}
)


class Front:
    """The replicas, as the process that serves sees them."""

    broken = False  # Ray Serve replaces what breaks

    def __init__(self, name: str, handle: Any, options: Options) -> None:
        self.name = name
        self.handle = handle.options(stream=True)
        self.options = options
        self.jobs: set[Call] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "websocket":  # nothing here speaks it
            await WebSocketClose()(scope, receive, send)
            return
        style = style_of(scope["path"])
        try:
            asked = await self._asked(Request(scope, receive))
            call = Call(self.handle, asked, style)
            self.jobs.add(call)
            try:
                with watched(receive, call.abort):
                    await call.relay(send)
            finally:
                self.jobs.discard(call)
        except ClientDisconnect:
            return
        except RequestError as error:
            await error.response(style)(scope, receive, send)

    async def _asked(self, request: Request) -> Asked:
        scope = request.scope
        body = b""
        if request.method not in ("GET", "HEAD"):
            body = await read_bytes(request, self.options.max_body)
        keys = keys_of(body) if len(body) < LARGE else await asyncio.to_thread(keys_of, body)
        return Asked(
            scope["method"],
            scope["path"],
            scope["query_string"],
            tuple((name, value) for name, value in scope["headers"] if name not in _DROPPED),
            body,
            tuple(scope["client"]) if scope["client"] else None,
            keys,
        )


def create_front(name: str, handle: Any, options: Options) -> tuple[Starlette, Front]:
    """The application before the replicas of the Ray Serve application `name`."""
    front = Front(name, handle, options)
    drain = Drain(options.grace)
    app = Starlette(
        routes=[Route("/health", _health), Route("/metrics", _metrics)],
        middleware=[Middleware(Draining, drain=drain), Middleware(Keys, keys=options.keys)],
    )
    app.router.default = front
    app.state.drain = drain
    app.state.front = front
    return app, front


async def _health(request: Request) -> Response:
    """200, or 503 with the reason: send requests elsewhere."""
    running = len(roster.running(request.app.state.front.name))
    reason = None
    if request.app.state.drain.begun:
        reason = "The server is stopping."
    elif not running:
        reason = "No replica runs."
    answer = {"status": "unavailable", "reason": reason} if reason else {"status": "ok"}
    headers = {"Cache-Control": "no-store"}
    return JSONResponse({**answer, "replicas": running}, 503 if reason else 200, headers)


async def _metrics(request: Request) -> Response:
    """What every replica counts, each series with the replica's id."""
    front: Front = request.app.state.front
    try:
        check_scraper(request.scope, front.options.metrics_token)
    except RequestError as error:
        return error.response("openai")
    return await scrape(front.handle, sorted(roster.running(front.name)))
