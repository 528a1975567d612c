"""GET over HTTP, by whichever client is cheapest and does what the user has set.

Importing `huggingface_hub` and its HTTP client costs several times what fetching a small kernel does, so a process
that has not imported it sends requests with the standard library. Its session is used wherever it could do otherwise:
it is imported (a client factory may be set), there is a proxy or a .netrc, the system is one that keeps proxies outside
the environment, the hub's certificate is none that OpenSSL trusts, or a body comes compressed unasked.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPMessage, HTTPResponse
    from ssl import SSLContext

_CONNECT_S, _READ_S = 10.0, 60.0
_MAX_REDIRECTS = 20
_PIECE = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_NEXT = re.compile(r'<([^>]*)>[^,]*;\s*rel="?next"?')
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class TransportError(Exception):
    """The hub could not be reached, or broke off; for the caller to say in words of its own."""


class _NeedsSessionError(Exception):
    """The standard library cannot read this answer as the session can."""


class Response:
    """An answer whose body has not been read, with as much of httpx.Response as the hub's client uses."""

    def __init__(self, raw: HTTPResponse, url: str, history: tuple[Response, ...]) -> None:
        self._raw = raw
        self.url = url
        self.history = history
        self.status_code = raw.status
        self.headers: HTTPMessage = raw.headers

    @property
    def links(self) -> dict[str, dict[str, str]]:
        """The `Link` header's next page."""
        found = _NEXT.search(self.headers.get("link", ""))
        return {"next": {"url": found[1]}} if found else {}

    def iter_bytes(self) -> Iterator[bytes]:
        """The body piece by piece. Raises TransportError if it ends before it is whole."""
        while piece := _attempt(self._raw.read, _PIECE):
            yield piece
        if self._raw.length:  # of a body with Content-Length, what did not come
            raise TransportError(f"the connection was closed with {self._raw.length} bytes to come")

    def skip_short_body(self) -> None:
        """Read a body that costs less than another connection."""
        if self._raw.length is not None and self._raw.length <= _PIECE:
            _attempt(self._raw.read)

    @property
    def is_read(self) -> bool:
        """Whether the connection can serve another request."""
        return self._raw.isclosed() and not self._raw.length and not self._raw.will_close


@contextmanager
def stream(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """GET `url`, through redirects; `authorization` is sent to no other host than the one in `url`.

    Yields a `Response`, or the session's, as soon as the headers are there.

    Raises:
        one of `http_errors()`: the hub cannot be reached.
        huggingface_hub.errors.OfflineModeIsEnabled: as that was set when huggingface_hub was imported.
    """
    if not _session_may_differ():
        try:
            response, connection = _follow(url, headers)
        except _NeedsSessionError:
            pass
        else:
            try:
                yield response
            finally:
                _put_back(response, connection)
            return
    from huggingface_hub import get_session

    timeouts = (_CONNECT_S, _READ_S, _READ_S, _READ_S)  # connect, read, write, wait for a connection
    with get_session().stream("GET", url, headers=dict(headers), timeout=timeouts) as answer:
        yield answer


def http_errors() -> tuple[type[Exception], ...]:
    """What a request raises: ours, and HTTPError of httpx or httpx2 where huggingface_hub is imported."""
    if "huggingface_hub" not in sys.modules:
        return (TransportError,)
    from huggingface_hub.errors import HfHubHTTPError

    return TransportError, next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def _session_may_differ() -> bool:
    if "huggingface_hub" in sys.modules or not sys.platform.startswith("linux"):
        return True
    if any(name.lower() in _PROXIES and value for name, value in os.environ.items()):
        return True
    return "NETRC" in os.environ or os.path.exists(os.path.expanduser("~/.netrc"))


# Process, scheme, host and port: a forked child must not speak on its parent's connections.
_Origin = tuple[int, str, str]
_idle: dict[_Origin, list[HTTPConnection]] = {}
_idle_lock = threading.Lock()


def _follow(url: str, headers: Mapping[str, str]) -> tuple[Response, HTTPConnection]:
    """The first answer that is no redirect, and the connection that it is read from."""
    history: tuple[Response, ...] = ()
    home = _origin(url)
    while True:
        own = {k: v for k, v in headers.items() if k != "authorization" or _origin(url) == home}
        raw, connection = _ask(url, own)
        response = Response(raw, url, history)
        target = response.headers.get("location")
        if response.status_code not in _REDIRECTS or target is None:
            if response.headers.get("content-encoding", "identity") != "identity":
                connection.close()
                raise _NeedsSessionError
            return response, connection
        response.skip_short_body()
        _put_back(response, connection)
        history, url = (*history, response), _attempt(urljoin, url, target)
        if len(history) > _MAX_REDIRECTS or urlsplit(url).scheme not in ("http", "https"):
            raise TransportError(f"redirected {len(history)} times, at last to {url}")


def _ask(url: str, headers: Mapping[str, str]) -> tuple[HTTPResponse, HTTPConnection]:
    """Send one GET; an idle connection that the hub has closed meanwhile is replaced."""
    origin, parts = _origin(url), urlsplit(url)
    target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    with _idle_lock:
        connection = _idle[origin].pop() if _idle.get(origin) else None
    if connection is not None:
        try:
            return _attempt(_exchange, connection, target, headers), connection
        except TransportError:
            connection.close()
    connection = _attempt(_connection, parts.scheme, parts.netloc)
    try:
        return _attempt(_exchange, connection, target, headers), connection
    except BaseException:
        connection.close()
        raise


def _exchange(connection: HTTPConnection, target: str, headers: Mapping[str, str]) -> HTTPResponse:
    is_new = connection.sock is None
    if is_new:
        connection.connect()
        connection.sock.settimeout(_READ_S)
    connection.request("GET", target, headers=dict(headers))
    return connection.getresponse()


def _connection(scheme: str, host: str) -> HTTPConnection:
    from http.client import HTTPConnection, HTTPSConnection

    if scheme == "https":
        return HTTPSConnection(host, timeout=_CONNECT_S, context=_tls_context())
    return HTTPConnection(host, timeout=_CONNECT_S)


@cache
def _tls_context() -> SSLContext:
    """OpenSSL's own trust, with SSL_CERT_FILE and SSL_CERT_DIR; once, for it reads all certificates there are."""
    from ssl import create_default_context

    return create_default_context()


def _put_back(response: Response, connection: HTTPConnection) -> None:
    if not response.is_read:
        connection.close()
        return
    with _idle_lock:
        _idle.setdefault(_origin(response.url), []).append(connection)


def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    return os.getpid(), parts.scheme, parts.netloc.lower()


def _attempt(call: Any, *arguments: Any) -> Any:
    """`call(*arguments)`, whose failures become TransportError; the session may know another certificate."""
    from http.client import HTTPException

    try:
        return call(*arguments)
    except OSError as error:
        if type(error).__name__ == "SSLCertVerificationError":
            raise _NeedsSessionError from None
        raise TransportError(str(error) or type(error).__name__) from None
    except (HTTPException, ValueError) as error:  # ValueError: no address, or a header that cannot be sent
        raise TransportError(f"{type(error).__name__}: {error}") from None
