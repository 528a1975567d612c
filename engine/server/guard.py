"""Who may ask: API keys, and who may read the metrics."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import RequestError, style_of

# A request that came through a proxy is nobody's of this machine, whatever address the proxy has.
_FORWARDED = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})


class Keys:
    """Middleware: below /v1/ and /about a request needs one of the keys, as a Bearer or as `x-api-key`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and _guarded(scope["path"]):
            given = [_digest(key) for key in _keys_in(scope)]
            if not any(hmac.compare_digest(one, other) for one in given for other in self._digests):
                refusal = RequestError(
                    401,
                    "This server asks for an API key: send one of its operator's as Authorization: Bearer KEY.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refusal.response(style_of(scope["path"]))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_scraper(scope: Scope, token: str | None) -> None:
    """Nothing, if the sender may see the metrics. Raises RequestError 401 or 403."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if token is not None:
        sent = dict(headers).get(b"authorization", b"")
        if not hmac.compare_digest(sent, b"Bearer " + token.encode()):
            raise RequestError(401, "Metrics take the token that this server was started with, as a Bearer.")
        return
    client = scope.get("client")
    if client is None or not _is_loopback(client[0]) or _FORWARDED & {name for name, _ in headers}:
        raise RequestError(
            403, "Metrics are for this server's own machine; its operator can set --metrics-token."
        )


def _guarded(path: str) -> bool:
    return path.startswith("/v1/") or path == "/about"


def _keys_in(scope: Scope) -> list[bytes]:
    found = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
    return found[:4]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)
