"""Turn a template and what it shows into an answer, with the headers that every page has.

Nothing inline is ever run or styled (Content-Security-Policy), no other site may frame a page, and a page that did
not change answers 304.
"""

from __future__ import annotations

import hashlib
from datetime import date, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from ..auth import COOKIE
from .charts import figure

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_STATIC = {"khub.css": "text/css", "khub.js": "text/javascript", "icon.svg": "image/svg+xml"}


def page(
    request: Request, template: str, status: int = 200, *, secret: bool = False, **context: Any
) -> Response:
    """Render `template`; a GET whose answer the browser has already is answered with 304. `secret`: keep none."""
    text = (
        _environment()
        .get_template(template)
        .render(request=request, signed_in=COOKIE in request.cookies, **context)
    )
    body = text.encode("utf-8", "replace")
    if secret:
        headers = {**SECURITY, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return Response(body, status, headers, media_type="text/html")
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        **SECURITY,
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Vary": "Accept, Authorization, Cookie",
    }
    if status == 200 and request.method in ("GET", "HEAD") and _has(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, status, headers, media_type="text/html")


def static(request: Request) -> Response:
    """A style sheet, script or picture of ours; its address names its content, so it is kept for good."""
    name = request.path_params["name"]
    if name not in _STATIC:
        return Response("There is no such file.", 404, SECURITY, media_type="text/plain")
    body, version = _asset(name)
    kept = "public, max-age=31536000, immutable" if request.query_params.get("v") == version else "no-cache"
    headers = {**SECURITY, "ETag": f'"{version}"', "Cache-Control": kept}
    if _has(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, media_type=_STATIC[name])


def _has(request: Request, etag: str) -> bool:
    sent = request.headers.get("if-none-match", "")
    return etag in (part.strip().removeprefix("W/") for part in sent.split(","))


@cache
def _asset(name: str) -> tuple[bytes, str]:
    body = files(__package__).joinpath("static", name).read_bytes()
    return body, hashlib.sha256(body).hexdigest()[:16]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": size,
        "day": day,
        "number": lambda value: f"{value:,}",
        "plural": plural,
        "figure": figure,
        "title_line": lambda text: text.strip().partition("\n")[0],
    }
    environment.globals |= {"asset": lambda name: f"/-/static/{name}?v={_asset(name)[1]}"}
    return environment


def size(count: int) -> str:
    """Bytes for people: 12 B, 3.4 KiB, 145 MiB."""
    value = float(min(count, 1 << 62))  # an index may state any number
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"


def day(moment: datetime | date) -> str:
    """A date for people: 3 Mar 2026."""
    return f"{moment.day} {moment:%b %Y}"


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun: 1 variant, 2 variants."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
