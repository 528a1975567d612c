"""Requests that no client sends: slow, oversize, ambiguous. Each is answered or cut off, and the server goes on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from khub_process import Hub, khub_environment

_SERVE = """
import json, sys
from pathlib import Path
from registry.edge import Limits
from registry.place import Place
from registry.server import serve
from registry.serving import Plan
limits = Limits(head_seconds=1, body_seconds=1, body_rate=1000, upload_bytes=100_000)
ready = lambda url: print(json.dumps({"url": url}), flush=True)
serve(Plan(Place(Path(sys.argv[1])), limits), "127.0.0.1", 0, ready=ready)
"""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A registry with limits of a second and 100 kB, and the repository `edge/k`."""
    data = tmp_path_factory.mktemp("strict") / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, data], env=khub_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    hub = Hub(json.loads(process.stdout.readline())["url"], data, process)
    made = httpx.post(
        f"{hub.url}/api/repos/create",
        json={"name": "k", "organization": "edge"},
        headers=_owner(hub),
        timeout=60,
    )
    assert made.status_code == 200
    yield hub
    hub.stop()


def _owner(hub: Hub) -> dict[str, str]:
    if hub.url not in _TOKENS:
        _TOKENS[hub.url] = hub.token("edge")
    return {"Authorization": f"Bearer {_TOKENS[hub.url]}"}


_TOKENS: dict[str, str] = {}


def _raw(hub: Hub, *pieces: bytes, pause: float = 0) -> bytes:
    """What the server sends until it closes the connection, given these pieces with pauses between them."""
    url = httpx.URL(hub.url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        received = b""
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(pause)
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:  # it closed with our bytes unread
            pass
    return received


def _left(hub: Hub) -> list[str]:
    """Files of uploads under way, and blobs."""
    folders = (hub.data / "tmp", hub.data / "blobs")
    return [path.name for folder in folders for path in folder.rglob("*") if path.is_file()]


def _head(*lines: str) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_GET = ("GET /api/kernels/edge/k HTTP/1.1", "Host: hub")
_COMMIT = "POST /api/kernels/edge/k/commit/main HTTP/1.1"


@pytest.mark.parametrize(
    "head",
    [
        _head(*_GET, "Content-Length: 3", "Transfer-Encoding: chunked"),
        _head(*_GET, "Content-Length: 3", "Content-Length: 4"),
        _head(*_GET, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        _head(*_GET, "Transfer-Encoding: gzip, chunked"),
        _head(*_GET, "Authorization: Bearer a", "Authorization: Bearer b"),
        _head(*_GET, "Range: bytes=0-1", "Range: bytes=1-2"),
        _head(*_GET, "Host: other"),
        _head("GET /api/kernels/edge/k HTTP/1.1"),
        _head(*_GET, "Content-Length: -1"),
        _head(*_GET, "Content-Length : 3"),
        _head(*_GET, "X: a\rb"),
        _head(*_GET, "X: a\0b"),
        _head("GET /api/kernels/edge/k\0 HTTP/1.1", "Host: hub"),
        _head("GET /api/kernels/edge/é HTTP/1.1", "Host: hub"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 3 + b"\r\n\r\n",
    ],
)
def test_head_when_two_parsers_would_differ_then_400_and_the_connection_ends(
    strict: Hub, head: bytes
) -> None:
    answer = _raw(strict, head + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), answer
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows was taken for a second request"


@pytest.mark.parametrize("size", ["-5", "5;x=" + "y" * 1_000_000, "zz", "0x5", "+5", "5\n"])
def test_chunk_when_its_size_is_no_number_then_no_commit_and_no_second_request(
    strict: Hub, size: str
) -> None:
    token = f"Authorization: {_owner(strict)['Authorization']}"
    head = _head(_COMMIT, "Host: hub", token, "Transfer-Encoding: chunked", "Connection: close")
    answer = _raw(
        strict, head + f"{size}\r\nhello\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n".encode()
    )
    assert b" 200 " not in answer and answer.count(b"HTTP/1.1 ") <= 1, answer


def test_head_when_it_is_a_megabyte_then_it_is_not_answered_with_200(strict: Hub) -> None:
    answer = _raw(strict, _head(*_GET, "X: " + "a" * 1_000_000, "Connection: close"))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer


def test_head_when_it_arrives_byte_by_byte_then_the_connection_is_cut(strict: Hub) -> None:
    line = _head(*_GET)
    assert _raw(strict, *(line[n : n + 1] for n in range(20)), pause=0.1) == b""


def test_connection_when_nothing_is_sent_then_it_is_cut(strict: Hub) -> None:
    assert _raw(strict) == b""


def test_body_when_it_stops_then_408_and_the_connection_ends(strict: Hub) -> None:
    token = f"Authorization: {_owner(strict)['Authorization']}"
    head = _head(_COMMIT, "Host: hub", token, "Content-Length: 1000")
    answer = _raw(strict, head + b'{"key"')
    assert answer.startswith(b"HTTP/1.1 408 ") and b"stopped at 6 bytes" in answer
    assert _left(strict) == []


def test_body_when_it_trickles_then_408_before_it_is_complete(strict: Hub) -> None:
    token = f"Authorization: {_owner(strict)['Authorization']}"
    head = _head(_COMMIT, "Host: hub", token, "Content-Length: 1000")
    assert _raw(strict, head, *[b"x"] * 30, pause=0.1).startswith(b"HTTP/1.1 408 ")


def test_body_when_it_goes_on_after_a_refusal_then_the_connection_is_cut(strict: Hub) -> None:
    answer = _raw(
        strict, _head(_COMMIT, "Host: hub", "Content-Length: 1000000"), *[b"x" * 10] * 40, pause=0.1
    )
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("announced", [True, False])
def test_commit_when_it_is_too_large_then_413_and_nothing_is_left(strict: Hub, announced: bool) -> None:
    body = b"x" * 200_000
    sent = httpx.post(
        f"{strict.url}/api/kernels/edge/k/commit/main",
        content=body if announced else iter([body[:50_000]] * 4),
        headers=_owner(strict),
    )
    assert sent.status_code == 413 and "100000 bytes" in sent.json()["error"]
    assert _left(strict) == []


def test_lfs_object_when_larger_than_announced_then_413_and_nothing_is_kept(strict: Hub) -> None:
    url = f"{strict.url}/edge/k.git/info/lfs/objects/batch"
    ask = {"operation": "upload", "objects": [{"oid": "ab" * 32, "size": 10}]}
    href = httpx.post(url, json=ask, headers=_owner(strict)).json()["objects"][0]["actions"]["upload"]["href"]
    assert httpx.put(href, content=b"x" * 11).status_code == 413
    assert httpx.put(href, content=b"x" * 10).status_code == 400
    ask["objects"] = [{"oid": "ab" * 32, "size": 100_001}]
    assert httpx.post(url, json=ask, headers=_owner(strict)).status_code == 400
    assert _left(strict) == []


def test_host_when_it_is_not_a_name_then_links_do_not_carry_it(strict: Hub) -> None:
    for host in ("evil.test/@x", "[::1", 'a">b', "a b"):
        answer = _raw(
            strict, _head("GET /api/kernels/edge/k/refs HTTP/1.1", f"Host: {host}", "Connection: close")
        )
        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ")) and host.encode() not in answer


def test_server_when_all_of_that_has_happened_then_it_still_answers(strict: Hub) -> None:
    assert httpx.get(f"{strict.url}/healthz").text == "ok"
    assert strict.process.poll() is None
