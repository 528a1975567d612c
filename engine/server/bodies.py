"""How much of requests' bodies is held in memory at a time, over all requests.

A body is counted as it arrives, not as it is announced, until its request is answered: its text and token ids live as
long. Beyond the limit a request is sent away and its bytes are free. Large bodies leave a share of the room
to small ones, so that a few slow uploads keep nobody with an ordinary prompt waiting.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError
from .options import LARGE_SHARE

SMALL = 64 << 10  # bytes up to which a body may use all the room


class Bodies:
    """Middleware: `most` bytes of bodies at a time. Who reads one too many gets RequestError 429 from `receive`."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = 0

        async def counted() -> Message:
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            room = self._most if own + size <= SMALL else self._most * LARGE_SHARE
            if size and self.held + size > room:
                raise _overfull()
            own += size
            self.held += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self.held -= own


def _overfull() -> RequestError:
    text = "The requests under way are as large as this server takes together: send this one again later."
    return RequestError(429, text, headers={"Retry-After": "1", "Connection": "close"})
