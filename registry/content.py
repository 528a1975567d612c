"""A file's content as an answer: whole or a range of it, from the disk or streamed out of the storage."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .blobs import BlobStore
from .errors import RequestError

SMALL = 64 << 10
BINARY = "application/octet-stream"
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)

_FROM_START = re.compile(r"bytes=(0-[0-9]{0,18}|-[0-9]{1,18})", re.IGNORECASE)


class _File(FileResponse):
    chunk_size = 256 << 10  # a thread is asked for each


class _Whole(_File):
    """The file without regard to `Range`, which asks for what `asked_range` takes for the whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def content_response(
    request: Request,
    blobs: BlobStore,
    sha256: str,
    size: int,
    headers: dict[str, str],
    *,
    redirect: bool = False,
) -> Response:
    """The blob, or what `Range` asks of it; `headers` has its ETag. Raises FileNotFoundError, RequestError 416.

    With `redirect` what is not on this machine is fetched from the storage itself, at a signed address.
    """
    path = blobs.local_path(sha256)
    if size <= SMALL and "range" not in request.headers:  # most files of a kernel: one read, one write
        return Response(b"".join(blobs.read(sha256)), headers=headers, media_type=BINARY)
    wanted = asked_range(request.headers.get("range"), request.headers.get("if-range"), headers["ETag"], size)
    if wanted is None:
        message = f"The file has {size} bytes: ask for a range that begins before its end."
        raise RequestError(416, message, headers={"Content-Range": f"bytes */{size}"})
    if path is not None:
        plain = _FROM_START.fullmatch(request.headers.get("range", "").strip())  # the whole as a range: 206
        kind = _Whole if wanted == (0, size) and plain is None else _File
        return kind(path, headers=headers, media_type=BINARY, stat_result=path.stat())
    if redirect and request.method == "GET" and (url := blobs.storage.signed_url(sha256)) is not None:
        return RedirectResponse(url, 302, headers)
    start, stop = wanted
    headers = {**headers, "Content-Length": str(stop - start)}
    status = 200
    if (start, stop) != (0, size):
        status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
    if request.method == "HEAD" or start == stop:
        return Response(status_code=status, headers=headers, media_type=BINARY)
    return StreamingResponse(blobs.read(sha256, start, stop), status, headers, BINARY)


def asked_range(asked: str | None, condition: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """The bytes (first, one after the last) that a Range header asks for; None if there are none such.

    The whole for no header, for several ranges, for what is malformed, and if `If-Range` names another ETag,
    as RFC 9110 allows or demands. Pure.
    """
    found = _RANGE.fullmatch((asked or "").strip())
    if found is None or found[0][6:] == "-" or (condition is not None and condition != etag):
        return 0, size
    first, last = found.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return 0, size
    return None if start >= stop else (start, stop)
