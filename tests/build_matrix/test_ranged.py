"""Members of a remote zip by ranged requests, against a real server on loopback."""

from __future__ import annotations

import io
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_matrix.toolchain.ranged import FileSource, HttpSource, open_source, read_members
from hub_loader.errors import ToolchainError

NOISE = bytes(range(256)) * 4096  # 1 MiB; stored, so that gaps between members are real


class RangeServer(ThreadingHTTPServer):
    content = b""
    requests: list[str]
    ignore_range = False
    failures = 0


class Handler(BaseHTTPRequestHandler):
    server: RangeServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append(wanted)
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        size = len(self.server.content)
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
        assert match
        start = int(match[1]) if match[1] else max(0, size - int(match[2]))
        stop = int(match[2]) + 1 if match[1] else size
        body = self.server.content if self.server.ignore_range else self.server.content[start:stop]
        self.send_response(200 if self.server.ignore_range else 206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[RangeServer]:
    server = RangeServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def url(server: RangeServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/wheel.whl"


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return buffer.getvalue()


def test_read_members_of_scattered_headers_fetches_them_and_little_else(server: RangeServer) -> None:
    server.content = archive(
        {
            "include/a.h": b"a" * 100,
            "include/b.h": b"b",
            "lib/big.so": NOISE,
            "include/c.h": b"c",
            "lib/end": NOISE,
        }
    )
    with open_source(url(server)) as source:
        found = dict(read_members(source, lambda name: name.startswith("include/")))
    assert found == {"include/a.h": b"a" * 100, "include/b.h": b"b", "include/c.h": b"c"}
    directory, *spans = [r.removeprefix("bytes=").split("-") for r in server.requests]
    assert directory[0] == ""  # counted from the end
    assert len(spans) == 2  # a.h with b.h, then c.h
    assert sum(int(stop) - int(start) for start, stop in spans) < 1000


def test_read_members_that_are_known_are_not_fetched(server: RangeServer) -> None:
    server.content = archive({"a.h": b"aa", "big": NOISE, "b.h": b"b", "end": NOISE})

    def known(name: str, size: int, crc: int) -> bytes | None:
        return b"AA" if (name, size, crc) == ("a.h", 2, zlib.crc32(b"aa")) else None

    with open_source(url(server)) as source:
        found = dict(read_members(source, lambda name: name.endswith(".h"), known))
    assert found == {"a.h": b"AA", "b.h": b"b"}
    assert len(server.requests) == 2


def test_read_members_when_the_server_fails_now_and_then_tries_again(server: RangeServer) -> None:
    server.content = archive({"include/a.h": b"a"})
    server.failures = 2
    with open_source(url(server)) as source:
        assert dict(read_members(source, lambda name: True)) == {"include/a.h": b"a"}


def test_open_source_when_the_server_ignores_ranges_refuses_instead_of_downloading_it_all(
    server: RangeServer,
) -> None:
    server.content = archive({"a": b"a"})
    server.ignore_range = True
    with pytest.raises(ToolchainError, match="HTTP 200 to a ranged request"), open_source(url(server)):
        pass


def test_open_source_when_nobody_listens_names_the_url() -> None:
    with pytest.raises(ToolchainError, match=r"127\.0\.0\.1:9/x"), open_source("http://127.0.0.1:9/x"):
        pass


def test_read_members_of_a_damaged_member_refuses(tmp_path: Path) -> None:
    content = bytearray(archive({"a.h": b"hello world"}))
    content[content.index(b"hello")] ^= 1
    path = tmp_path / "wheel.whl"
    path.write_bytes(content)
    with pytest.raises(ToolchainError, match="damaged"):
        list(read_members(FileSource(path), lambda name: True))


@given(
    st.dictionaries(
        st.text("abc/", min_size=1, max_size=6).filter(lambda n: not n.endswith("/")), st.binary()
    ),
    st.sets(st.sampled_from("abc")),
)
def test_read_members_of_any_archive_gives_what_zipfile_gives(
    members: dict[str, bytes], initials: set[str]
) -> None:
    content = archive(members, zipfile.ZIP_DEFLATED)

    class Memory:
        size = len(content)

        def read_range(self, start: int, stop: int) -> bytes:
            return content[start:stop]

    found = dict(read_members(Memory(), lambda name: name[0] in initials))
    assert found == {name: data for name, data in members.items() if name[0] in initials}


def test_http_source_counts_its_requests(server: RangeServer) -> None:
    import httpx

    server.content = b"0123456789"
    with httpx.Client() as client:
        source = HttpSource(client, url(server))
        assert (source.size, source.read_range(2, 5), source.requests) == (10, b"234", 1)


def test_http_source_fetches_each_byte_of_the_files_end_once_and_tells_what_came(server: RangeServer) -> None:
    import httpx

    server.content, came = NOISE, []
    with httpx.Client() as client:
        source = HttpSource(client, url(server), came.append)
        for start, stop in ((0, 10), (len(NOISE) - 200_000, len(NOISE)), (len(NOISE) - 5, len(NOISE) - 1)):
            assert source.read_range(start, stop) == NOISE[start:stop]
    assert (source.requests, sum(came)) == (3, 10 + 200_000)
