"""The HTTP client of this process: huggingface_hub's where that is in use, else one of the library under it.

huggingface_hub 1.x requires httpx, 2.x httpx2, the same library under a newer name; whichever is there does the work.
A client factory that the user has set counts, for who sets one has imported huggingface_hub. Otherwise its import,
and certificates that no address asks for, would be most of what a cold load costs.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any

_NAMES = ("httpx2", "httpx")
_lock = threading.Lock()
_client: Any = None


def session() -> Any:
    """The client, an httpx.Client that follows redirects, shared by all threads."""
    global _client
    if "huggingface_hub.utils" in sys.modules:
        from huggingface_hub import get_session

        return get_session()
    with _lock:
        if _client is None:
            _client = _new_client()
            atexit.register(_client.close)
        return _client


def http_errors() -> tuple[type[Exception], ...]:
    """The base of all errors of the client, by whichever of its names it has been imported."""
    return tuple(module.HTTPError for name in _NAMES if (module := sys.modules.get(name)) is not None)


def offline_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub's session raises for every request if HF_HUB_OFFLINE was set at its import."""
    errors = sys.modules.get("huggingface_hub.errors")
    return () if errors is None else (errors.OfflineModeIsEnabled,)


def _new_client() -> Any:
    import ssl  # slow to import, like the next, and a warm process asks nobody
    from urllib.request import getproxies

    http: Any
    try:
        import httpx2 as http
    except ImportError:
        import httpx as http
    if any(scheme != "no" for scheme in getproxies()):  # NO_PROXY alone is no proxy
        return http.Client(follow_redirects=True)
    no_certificates = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never asked; would refuse every one
    transport, https = http.HTTPTransport(verify=no_certificates), _Https(http)
    return http.Client(transport=transport, mounts={"https://": https}, follow_redirects=True)


class _Https:
    """The library's own transport, made when the first https address is asked for: it reads all certificates."""

    def __init__(self, http: Any) -> None:
        self._http, self._lock = http, threading.Lock()
        self._transport: Any = None

    def handle_request(self, request: Any) -> Any:
        with self._lock:
            if self._transport is None:
                self._transport = self._http.HTTPTransport()
        return self._transport.handle_request(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _forget() -> None:
    """Begin anew after a fork: connections are the parent's, and a lock may be held by a thread of its."""
    global _client, _lock
    _client, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
