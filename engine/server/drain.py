"""How a server stops: health says so, new requests are sent away, those under way are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError, style_of

ALWAYS = frozenset({"/health", "/metrics"})


class Drain:
    """The state of a server that stops or does not; `grace` in seconds from the first signal on."""

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.under_way = 0
        self._grace = grace
        self._clock = clock
        self._began: float | None = None

    def begin(self) -> None:
        """Stop."""
        if self._began is None:
            self._began = self._clock()

    @property
    def begun(self) -> bool:
        """Whether the server stops."""
        return self._began is not None

    @property
    def late(self) -> bool:
        """Whether the grace is over."""
        return self._began is not None and self._clock() - self._began >= self._grace

    @property
    def over(self) -> bool:
        """Whether nothing is waited for any more."""
        return self.begun and (self.late or not self.under_way)


class Draining:
    """Middleware that counts the requests under way and sends new ones away once the server stops."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        if self._drain.begun:
            headers = {"Retry-After": "1", "Connection": "close"}
            answer = RequestError(503, "This server is stopping: send the request again.", headers=headers)
            await answer.response(style_of(scope["path"]))(scope, receive, send)
            return

        async def last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.begun:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        self._drain.under_way += 1
        try:
            await self._app(scope, receive, last)
        finally:
            self._drain.under_way -= 1
