"""How a server stops: what is under way is finished, what is new is sent away, and health says so meanwhile.

From the first signal on `/readyz` answers 503, so that a load balancer takes the server out. For `notice`
seconds everything is still answered; then new requests get 503 and those under way are waited for, `grace`
seconds in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import unavailable
from ..throttle import FREE


class Drain:
    """The state of a server that stops or does not."""

    def __init__(
        self, notice: float = 0.0, grace: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`notice` and `grace` in seconds, both from the first signal on."""
        self.notice = notice
        self.grace = grace
        self.under_way = 0
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
    def refuses(self) -> bool:
        """Whether new requests are sent away."""
        return self._began is not None and self._clock() - self._began >= self.notice

    @property
    def over(self) -> bool:
        """Whether nothing is waited for any more."""
        if self._began is None:
            return False
        return self.left <= 0 or (self.refuses and self.under_way == 0)

    @property
    def left(self) -> float:
        """Seconds of the grace that are left."""
        if self._began is None:
            return self.grace
        return max(0.0, self._began + max(self.grace, self.notice) - self._clock())


class Draining:
    """Middleware that counts the requests under way and sends new ones away. Health is always answered."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in FREE:
            await self._app(scope, receive, send)
            return
        if self._drain.refuses:
            answer = unavailable("This server is stopping: send the request again in a moment.").response()
            answer.headers["Retry-After"] = "1"
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send)
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
