"""Requests without huggingface_hub, held against a hub that redirects, breaks off and hangs up."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hub_loader import transport
from hub_loader.transport import TransportError, stream

ROOT = Path(__file__).parents[2]


class Server:
    """`answers[path]` is (status, headers, body); `seen` are (path, Authorization, connection) of each request."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.seen: list[tuple[str, str | None, int]] = []
        self.hangs_up = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                authorization = self.headers.get("Authorization")
                outer.seen.append((self.path, authorization, self.client_address[1]))
                status, headers, body = outer.answers[self.path]
                lines = [f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in headers.items())]
                if not {"Content-Length", "Transfer-Encoding"} & headers.keys():
                    lines.append(f"Content-Length: {len(body)}")
                self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)
                # Without a word to the client, as servers do with connections that are idle for too long.
                self.close_connection = outer.hangs_up or int(headers.get("Content-Length", 0)) > len(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def without_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing for which the session would be used, whatever other tests have imported."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)


def get(url: str, **headers: str) -> bytes:
    with stream(url, headers) as response:
        assert isinstance(response, transport.Response)
        return b"".join(response.iter_bytes())


def test_two_requests_when_the_first_is_read_share_a_connection(server: Server) -> None:
    server.answers = {"/a": (200, {}, b"one"), "/b": (200, {}, b"")}
    assert (get(f"{server.url}/a"), get(f"{server.url}/b"), get(f"{server.url}/a")) == (b"one", b"", b"one")
    assert len({connection for *_, connection in server.seen}) == 1


def test_body_that_is_not_read_to_its_end_is_not_taken_for_the_next_answer(server: Server) -> None:
    server.answers = {"/long": (200, {}, b"x" * 200_000), "/a": (200, {}, b"one")}
    with stream(f"{server.url}/long", {}) as response:
        next(response.iter_bytes())
    assert get(f"{server.url}/a") == b"one"


def test_idle_connection_that_the_hub_has_closed_is_replaced(server: Server) -> None:
    server.answers = {"/a": (200, {}, b"one")}
    server.hangs_up = True
    assert [get(f"{server.url}/a") for _ in range(3)] == [b"one"] * 3


def test_chunked_body_is_read_whole(server: Server) -> None:
    server.answers = {"/a": (200, {"Transfer-Encoding": "chunked"}, b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")}
    assert get(f"{server.url}/a") == b"onetwo"


def test_body_that_breaks_off_is_an_error(server: Server) -> None:
    server.answers = {"/a": (200, {"Content-Length": "10"}, b"four")}
    with pytest.raises(TransportError, match="6 bytes to come"):
        get(f"{server.url}/a")


def test_redirect_within_the_hub_keeps_the_token_and_the_history(server: Server) -> None:
    server.answers = {"/a": (307, {"Location": "/b", "X-Mark": "first"}, b"moved"), "/b": (200, {}, b"two")}
    with stream(f"{server.url}/a", {"authorization": "Bearer t"}) as response:
        assert b"".join(response.iter_bytes()) == b"two"
        assert response.url == f"{server.url}/b"
        assert [(hop.url, hop.headers["x-mark"]) for hop in response.history] == [
            (f"{server.url}/a", "first")
        ]
    assert [token for _, token, _ in server.seen] == ["Bearer t", "Bearer t"]


def test_redirect_to_another_host_drops_the_token(server: Server) -> None:
    other = Server()
    try:
        server.answers = {"/a": (302, {"Location": f"{other.url}/b"}, b"")}
        other.answers = {"/b": (302, {"Location": f"{other.url}/c"}, b""), "/c": (200, {}, b"three")}
        assert get(f"{server.url}/a", authorization="Bearer t") == b"three"
    finally:
        other.close()
    assert [token for _, token, _ in other.seen] == [None, None]


@pytest.mark.parametrize("target", ["/a", "file:///etc/passwd", "http://host:port/", "http://["])
def test_redirect_that_leads_nowhere_is_an_error(server: Server, target: str) -> None:
    server.answers = {"/a": (302, {"Location": target}, b"")}
    with pytest.raises(TransportError, match="redirected|port|IPv6"):
        get(f"{server.url}/a")


def test_header_that_cannot_be_sent_is_an_error(server: Server) -> None:
    with pytest.raises(TransportError, match="header"):
        get(f"{server.url}/a", authorization="Bearer a\nX: b")


def test_unreachable_hub_is_an_error(server: Server) -> None:
    server.close()
    with pytest.raises(TransportError, match="refused"):
        get(f"{server.url}/a")


def test_link_to_the_next_page_is_found(server: Server) -> None:
    link = '<http://h/first>; rel="first", <http://h/next?cursor=1>; rel="next"'
    server.answers = {"/a": (200, {"Link": link}, b""), "/b": (200, {}, b"")}
    with stream(f"{server.url}/a", {}) as response:
        assert response.links == {"next": {"url": "http://h/next?cursor=1"}}
    with stream(f"{server.url}/b", {}) as response:
        assert response.links == {}


USES_SESSION = """
import sys
from hub_loader.transport import stream
{before}
with stream({url!r}, {{}}) as response:
    print(b"".join(response.iter_bytes()), "huggingface_hub" in sys.modules)
"""


def in_new_process(url: str, before: str = "", **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "NETRC"}
    code = USES_SESSION.format(before=before, url=url)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_request_without_settings_imports_no_huggingface_hub(server: Server) -> None:
    server.answers = {"/a": (200, {}, b"one")}
    assert in_new_process(f"{server.url}/a") == "b'one' False"


def test_request_when_a_proxy_is_set_goes_through_it(server: Server) -> None:
    server.answers = {"http://hub.invalid/a": (200, {}, b"by proxy")}
    assert in_new_process("http://hub.invalid/a", HTTP_PROXY=server.url) == "b'by proxy' True"


def test_client_factory_that_a_user_has_set_makes_the_requests(server: Server) -> None:
    server.answers = {"/a": (200, {}, b"one")}
    before = (
        "import huggingface_hub as h; from huggingface_hub.utils._http import default_client_factory as make\n"
        "h.set_client_factory(lambda: print('mine', end=' ') or make())"
    )
    assert in_new_process(f"{server.url}/a", before) == "mine b'one' True"


def test_body_that_comes_compressed_unasked_is_left_to_the_session(server: Server) -> None:
    import gzip

    server.answers = {"/a": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"one"))}
    assert in_new_process(f"{server.url}/a") == "b'one' True"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Key and self-signed certificate of 127.0.0.1 in one file."""
    path, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        *names,
        "-keyout",
        key,
        "-out",
        path,
    ]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def test_https_with_a_certificate_that_is_trusted_needs_no_session(certificate: Path) -> None:
    server = Server(certificate)
    try:
        server.answers = {"/a": (200, {}, b"one")}
        assert in_new_process(f"{server.url}/a", SSL_CERT_FILE=str(certificate)) == "b'one' False"
    finally:
        server.close()


def test_https_with_a_certificate_that_nobody_trusts_is_refused_by_the_session_too(certificate: Path) -> None:
    server = Server(certificate)
    try:
        server.answers = {"/a": (200, {}, b"one")}
        with pytest.raises(subprocess.CalledProcessError) as refused:
            in_new_process(f"{server.url}/a")
    finally:
        server.close()
    assert "CERTIFICATE_VERIFY_FAILED" in refused.value.stderr
    assert server.seen == []
