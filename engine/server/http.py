"""Bodies in, answers and streams out; and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .errors import RequestError, Style, answer_to
from .job import Job

log = logging.getLogger(__name__)
BODY_SECONDS = 60.0  # for a body to arrive
QUIET_SECONDS = 15.0  # after which a stream without news says that it is alive, for proxies on the way
LARGE = (
    32 << 10
)  # bytes of a body or characters of a prompt that are not worked on in the event loop's thread
_GONE = 499  # never sent: nobody is there to read it

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


async def read_body(request: Request, kind: type[Body], limit: int) -> Body:
    """The request's JSON.

    Raises:
        RequestError: it is no JSON by its type (415), longer than `limit` bytes (413), or too slow (408).
        ValidationError: it is not what `kind` describes.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":  # also what keeps other sites' pages from posting here from a browser
        raise RequestError(415, "Send the body as JSON, with the header Content-Type: application/json.")
    body = await read_bytes(request, limit)
    if len(body) < LARGE:
        return kind.model_validate_json(body)
    return await asyncio.to_thread(kind.model_validate_json, body)


async def read_bytes(request: Request, limit: int) -> bytes:
    """The request's body. Raises RequestError 413 or 408, as `read_body`."""
    too_large = RequestError(
        413, f"The body is longer than this server's {limit} bytes.", headers={"Connection": "close"}
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    try:
        return await asyncio.wait_for(_collect(request, limit, too_large), BODY_SECONDS)
    except asyncio.TimeoutError:
        text = f"The body did not arrive within {BODY_SECONDS:g} seconds."
        raise RequestError(408, text, headers={"Connection": "close"}) from None


async def _collect(request: Request, limit: int, too_large: RequestError) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def unless_gone(receive: Receive, abort: Callable[[], Any], answer: Awaitable[Result]) -> Result:
    """Await `answer`; call `abort` if the client goes away before, and when it is over in whatever way."""
    with watched(receive, abort):
        try:
            return await answer
        finally:
            abort()


@contextmanager
def watched(receive: Receive, abort: Callable[[], Any]) -> Iterator[None]:
    """Call `abort` if the client goes away meanwhile."""
    watcher = asyncio.create_task(_abort_when_gone(receive, abort))
    try:
        yield
    finally:
        watcher.cancel()


async def _abort_when_gone(receive: Receive, abort: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    abort()


class EventStream(Response):
    """Server-sent events of a job; the job is aborted when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, events: AsyncIterator[bytes], style: Style) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._job = job
        self._events = events
        self._style = style

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._job.abort, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._events:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:  # the status was sent: what went wrong is the stream's last event
            answer = answer_to(error)
            if answer is None:
                log.exception("A stream failed")
                answer = RequestError(500, "This server failed on the request: see its log.")
            last = last_event(answer, self._style)
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {dump(data)}\n\n".encode()


def last_event(error: RequestError, style: Style) -> bytes:
    """What a stream ends with that cannot be answered to its end."""
    return event(error.body(style), "error" if style == "anthropic" else None)


def dump(data: Any) -> str:
    """JSON without spaces, as text."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def gone() -> Response:
    """What stands for an answer when the client is not there any more."""
    return JSONResponse({}, _GONE)
