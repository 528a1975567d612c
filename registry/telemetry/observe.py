"""Every request: an id, in its log lines and its answer; a line in the log at its end; counted for Prometheus."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..accounts.identity import Identity
from ..throttle import address_of
from .log_format import FIELDS
from .metrics import Metrics, Served
from .request_id import CURRENT, request_id
from .route_names import route_of

_log = logging.getLogger("registry.requests")
_GONE = 499  # the sender went away, or the server stopped, before the answer began
_LONGEST = 200  # characters of what a sender chose, in the log


class Observe:
    """Middleware around everything else, the handler of failures included."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # before others copy the scope: what they note is read here
        seen = _Seen(receive, send, request_id(scope["headers"]))
        CURRENT.set(seen.id)  # of this task alone, and still there when the server logs how it failed
        began = time.monotonic()
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, seen.receive, seen.send)
        finally:
            self._metrics.in_flight.dec()
            self._end(scope, seen, time.monotonic() - began)

    def _end(self, scope: Scope, seen: _Seen, seconds: float) -> None:
        done = Served(route_of(scope), scope["method"], seen.status, seconds, seen.bytes_in, seen.bytes_out)
        self._metrics.count(done)
        if _log.isEnabledFor(logging.INFO):
            fields = describe(scope, done)
            text = "{method} {path} {status} {seconds:.3f}s {bytes_in}+{bytes_out} {client}".format(**fields)
            _log.info("%s", text, extra={FIELDS: fields})


class _Seen:
    """What passes between the server and the application."""

    def __init__(self, receive: Receive, send: Send, id: str) -> None:
        self._receive = receive
        self._send = send
        self.id = id
        self.status = _GONE
        self.bytes_in = self.bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.id.encode("ascii"))]
            message = {**message, "headers": headers}
        await self._send(message)
        self.bytes_out += len(message.get("body", b""))


def describe(scope: Scope, done: Served) -> dict[str, Any]:
    """A request's fields in the log. The query is not among them: addresses are signed in it."""
    identity: Identity | None = scope["state"].get("identity")
    named = identity is not None and not identity.anonymous
    return {
        "method": done.method,
        "path": scope["raw_path"].decode("ascii", "replace")[:1024],
        "route": done.route,
        "status": done.status,
        "seconds": round(done.seconds, 6),
        "bytes_in": done.bytes_in,
        "bytes_out": done.bytes_out,
        "client": address_of(scope),
        "account": f"{identity.kind}:{identity.name}" if identity is not None and named else None,
        "user_agent": Headers(scope=scope).get("user-agent", "")[:_LONGEST],
        **({"trace_id": scope["state"]["trace_id"]} if "trace_id" in scope["state"] else {}),
    }
