"""What a replica answers, held back for as long as another could still answer instead."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

from starlette.types import Send

from ..server.http import dump

# Events at the beginning of a stream that say nothing of the answer but its id, which another replica's has not.
_PREAMBLES = {"/v1/chat/completions": 1, "/v1/messages": 1}
_ALIVE = (b":", b"event: ping\n")  # a comment, and what Anthropic's clients pass over wherever it comes
REPLICA = b"x-khub-replica"

Message = MutableMapping[str, Any]


class Held:
    """Passes an ASGI application's messages on to `send`, as late as that helps.

    `began`: something was sent. `streams`: of a stream, which can end with an event that says why. `content`: of
    the answer itself, so that no other can follow. `over`: all of it.
    """

    def __init__(self, send: Send, path: str) -> None:
        self.began = False
        self.streams = False
        self.content = False
        self.over = False
        self._client = send
        self._preambles = _PREAMBLES.get(path, 0)
        self.again()

    def again(self) -> None:
        """What comes next is of another replica."""
        self._start: Message | None = None
        self._waiting: list[Message] = []
        self._stream = False

    async def take(self, message: Message, replica: str) -> None:
        """The next message, of `replica`."""
        if message["type"] == "http.response.start":
            self._stream = b"text/event-stream" in dict(message["headers"]).get(b"content-type", b"")
            self._start = {**message, "headers": [*message["headers"], (REPLICA, replica.encode())]}
        elif self.content:
            await self._send(message)
        elif self._stream and message["body"].startswith(_ALIVE):
            await self._begin()
            await self._send(message)
        elif self._stream and len(self._waiting) < self._preambles:
            self._waiting.append(message)
        elif self.began and not self._stream:  # a comment went out already: the answer has to be an event
            self._waiting.append(message)
            if not message.get("more_body", False):
                await self.end(self._as_event())
        else:
            await self._begin()
            self.content = True
            for each in (*self._waiting, message):
                await self._send(each)

    async def end(self, last: bytes) -> None:
        """End a stream with an event that says why."""
        self.content = True
        await self._send({"type": "http.response.body", "body": last, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, message: Message) -> None:
        await self._client(message)
        self.over = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def _begin(self) -> None:
        if not self.began and self._start is not None:
            self.began = True
            self.streams = self._stream
            await self._send(self._start)

    def _as_event(self) -> bytes:
        body = json.loads(b"".join(each["body"] for each in self._waiting))
        name = "event: error\n" if body.get("type") == "error" else ""
        return f"{name}data: {dump(body)}\n\n".encode()
