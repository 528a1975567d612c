"""The edge of the server: what is refused before a route is looked up, and how long a client may take.

h11 refuses malformed heads; this adds what is well-formed and still means two things to two parsers, heads and
bodies that arrive a byte at a time, and requests that go on after they were answered.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import RequestError, bad_request

# A second one of these would be read by one program and overlooked by the next.
_ONCE = frozenset({b"authorization", b"content-type", b"content-encoding", b"range", b"transfer-encoding"})


@dataclass(frozen=True)
class Limits:
    """How long and how large a request may be.

    `head_seconds`: for the request line and headers to arrive, and for the rest of a body that was refused.
    `body_seconds`: what a body may take in any case, and the longest silence in it; beyond that it has to come
    with `body_rate` bytes per second on average. `upload_bytes`: of one commit's body or one LFS object.
    """

    head_seconds: float = 30
    body_seconds: float = 60
    body_rate: int = 1024
    upload_bytes: int = 64 << 30


class Edge:
    """Refuse ambiguous heads, keep time while a body arrives, and route on the percent-encoded path.

    Routing on it keeps `refs%2Fheads%2Fv1` one part of the path.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        if (refusal := _ambiguous(scope)) is not None:
            response = refusal.response()
            response.headers["Connection"] = "close"  # where this request ends is what is in doubt
            return await response(scope, receive, send)
        return await self._app(scope, _Paced(receive, self._limits), send)


def _ambiguous(scope: Scope) -> RequestError | None:
    counted = Counter(name for name, _ in scope["headers"])
    twice = sorted(name.decode() for name in _ONCE if counted[name] > 1)
    if twice:
        return bad_request(
            f"The header {twice[0]} is there {counted[twice[0].encode()]} times: send it once."
        )
    if counted[b"content-length"] and counted[b"transfer-encoding"]:
        return bad_request("Content-Length and Transfer-Encoding exclude each other: send one of them.")
    return None


class _Paced:
    """A request's `receive` that counts the seconds spent waiting for the client, not those of the disk."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._waited = 0.0
        self._received = 0
        self._done = False

    async def __call__(self) -> Message:
        if self._done:  # the body is complete: what is waited for now is the client going away
            return await self._receive()
        loop = asyncio.get_running_loop()
        earned = self._received / self._limits.body_rate
        left = min(self._limits.body_seconds, self._limits.body_seconds + earned - self._waited)
        began = loop.time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except asyncio.TimeoutError:
            raise RequestError(
                408,
                f"The body stopped at {self._received} bytes, or comes at less than {self._limits.body_rate} "
                "bytes per second: send it again over a better connection.",
                headers={"Connection": "close"},
            ) from None
        self._waited += loop.time() - began
        self._received += len(message.get("body", b""))
        self._done = not message.get("more_body", False)
        return message


def guarded_protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, which closes connections whose next head does not arrive in time.

    So it does where a request was answered before its body had come, and the body does not end.
    """

    class GuardedProtocol(H11Protocol):
        _alarm: asyncio.TimerHandle | None = None
        _began = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._rest()

        def _watch(self) -> None:
            theirs, ours = self.conn.their_state, self.conn.our_state
            self._began = self._began or theirs is not h11.IDLE
            # Between requests the keep-alive timeout counts; the first request has none.
            head = theirs is h11.IDLE and (not self._began or bool(self.conn.trailing_data[0]))
            refused = ours is h11.DONE and theirs is h11.SEND_BODY
            if not (head or refused):
                self._rest()
            elif self._alarm is None:
                self._alarm = self.loop.call_later(limits.head_seconds, self.transport.close)

        def _rest(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    return GuardedProtocol
