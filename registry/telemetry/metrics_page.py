"""`/metrics`, for whom it is: this machine alone, or who knows the token that `--metrics-token` set."""

from __future__ import annotations

import hmac
import ipaddress

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from ..errors import RequestError, forbidden
from ..throttle import address_of

# A request that came through a proxy is nobody's of this machine, whatever address the proxy has.
_FORWARDED = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})


def metrics_page(request: Request) -> Response:
    """Everything that is counted, in the format that the scraper asks for."""
    check_scraper(request.scope, request.app.state.options.metrics_token)
    registry: CollectorRegistry = request.app.state.metrics.registry
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"Content-Type": media_type})


def check_scraper(scope: Scope, token: str | None) -> None:
    """Nothing, if the sender may see the metrics. Raises RequestError 401 or 403."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if token is not None:
        sent = dict(headers).get(b"authorization", b"")
        if not hmac.compare_digest(sent, b"Bearer " + token.encode()):
            raise RequestError(401, "Metrics take the token that this server was started with, as a Bearer.")
        return
    if not _is_loopback(address_of(scope)) or _FORWARDED & {name for name, _ in headers}:
        raise forbidden("Metrics are for this server's own machine; its operator can set --metrics-token")


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
