"""Rate limits: a request too many is answered 429 with `Retry-After`, before anything else is done for it.

Who sends a token that works is counted by it, everybody else by address. Each process counts for itself and forgets
at its end; N processes let up to N times as many through. What the limits are is in the hub's settings,
read again every few seconds. What operators ask, such as `/healthz`, is never refused.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .accounts.bucket import Buckets, Rate
from .accounts.settings import Settings, read_settings
from .accounts.tokens import identify
from .clock import utc_now
from .errors import RequestError
from .store import Store

FREE = frozenset({"/healthz", "/readyz", "/metrics"})
_REMEMBERED = 5.0  # seconds until changed settings hold
_TRUSTED = 60.0  # seconds until a token is looked up again
_MOST_KNOWN = 50_000


class Throttle:
    """Middleware that counts requests."""

    def __init__(self, app: ASGIApp, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._store = store
        self._clock = clock
        self._buckets = Buckets()
        self._known: OrderedDict[str, float] = OrderedDict()  # hash of a working token, when it was seen
        self._settings = Settings()
        self._read_at = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in FREE:
            wait = await self._wait(scope)
            if wait > 0:
                await _refusal(wait)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _wait(self, scope: Scope) -> float:
        now = self._clock()
        if now - self._read_at >= _REMEMBERED:
            self._read_at = now  # others go on with what was known while this one asks
            self._settings = await run_in_threadpool(self._read)
        settings = self._settings
        authorization = Headers(scope=scope).get("authorization")
        if authorization and settings.rate_token is not None:
            caller = hashlib.sha256(authorization.encode()).hexdigest()
            if now - self._known.get(caller, -math.inf) < _TRUSTED:
                return self._take(caller, settings.rate_token, now)
        wait = 0.0
        if settings.rate_address is not None:
            wait = self._take(address_of(scope), settings.rate_address, now)
        if authorization and settings.rate_token is not None and wait == 0:
            await self._look_up(authorization, caller, now)
        return wait

    async def _look_up(self, authorization: str, caller: str, now: float) -> None:
        """Count a token that works by itself from now on; made-up ones go on counting for the address."""
        if await run_in_threadpool(self._works, authorization):
            self._known[caller] = now
            self._known.move_to_end(caller)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def _take(self, caller: str, per_second: float, now: float) -> float:
        burst = max(1.0, per_second * self._settings.burst)
        return self._buckets.take(caller, Rate(per_second, burst), now)

    def _read(self) -> Settings:
        with self._store.read() as session:
            return read_settings(session)

    def _works(self, authorization: str) -> bool:
        with self._store.read() as session:
            return not identify(session, authorization, utc_now()).anonymous


def address_of(scope: Scope) -> str:
    """The client's address, as the server knows it: behind a proxy, what a trusted proxy says."""
    client = scope.get("client")
    return client[0] if client else "unknown"


def _refusal(wait: float) -> Response:
    seconds = max(1, math.ceil(wait))
    message = f"Too many requests: wait {seconds} s. This hub's operator sets how many are allowed."
    response = RequestError(429, message, code="TooManyRequests").response()
    response.headers["Retry-After"] = str(seconds)
    return response
