"""Whether an answer goes to a person in a browser or to a client. Pure but for reading headers."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request


def wants_html(request: Request) -> bool:
    """Whether a browser asked: it names text/html, which no client of the Hub does; the API is never HTML."""
    if request.url.path.startswith("/api/"):
        return False
    types = (part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(","))
    return "text/html" in types


def same_origin(request: Request) -> bool:
    """Whether a form was sent from a page of this server, as far as the browser says; a client says nothing."""
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None:
        return fetched in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def local_path(target: str) -> str:
    """`target` if it is a path on this server, else "/": where a form may send a browser next."""
    is_path = target.startswith("/") and not target.startswith(("//", "/\\"))
    plain = target.isascii() and target.isprintable() and "\\" not in target
    return target if is_path and plain else "/"
