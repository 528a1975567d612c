"""`X-Mirror` on answers about an upstream's repository: `fresh`, or `stale` with the reason."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class MirrorHeader:
    """Add the header that a handler left in the request's state."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})

        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start" and state.get("mirror") not in (None, "absent"):
                MutableHeaders(scope=message)["X-Mirror"] = state["mirror"]
            await send(message)

        await self._app(scope, receive, with_header)
