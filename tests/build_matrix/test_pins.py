"""What is fetched is what was locked: the lock, resumed downloads, Debian packages."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from build_matrix.matrix import DebianPackages, read_matrix
from build_matrix.toolchain.debian import ARCHIVE_VARIABLE, unpack_packages
from build_matrix.toolchain.download import download
from build_matrix.toolchain.pins import Lock, Recorder, digest_of_members, read_lock, write_lock
from hub_loader.errors import ToolchainError

CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; breaks off the first answer after `first` bytes. `ranges` holds what was asked for."""

    def __init__(self, first: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first = first
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        broken = self.server.first is not None and len(self.server.ranges) == 1
        self.wfile.write(CONTENT[start : self.server.first if broken else None])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[type[Server]]:
    servers: list[Server] = []

    class Started(Server):
        def __init__(self, first: int | None = None) -> None:
            super().__init__(first)
            servers.append(self)
            threading.Thread(target=self.serve_forever, daemon=True).start()

    yield Started
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_that_breaks_off_continues_where_it_was(serve: type[Server], tmp_path: Path) -> None:
    server, came = serve(first=1000), []
    path = download(server.url, "file.bin", tmp_path, Lock({"file.bin": DIGEST}), came.append)
    assert path.read_bytes() == CONTENT
    assert sum(came) == len(CONTENT)
    assert server.ranges == [None, "bytes=1000-"]


def test_download_continues_the_partial_file_of_a_killed_process(serve: type[Server], tmp_path: Path) -> None:
    (tmp_path / ".file.bin.part").write_bytes(CONTENT[:5000])
    server = serve()
    assert download(server.url, "file.bin", tmp_path, Lock({"file.bin": DIGEST})).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_download_of_a_file_that_is_there_asks_nobody(serve: type[Server], tmp_path: Path) -> None:
    server = serve()
    pins = Lock({"file.bin": DIGEST})
    assert download(server.url, "file.bin", tmp_path, pins) == download(
        server.url, "file.bin", tmp_path, pins
    )
    assert len(server.ranges) == 1


def test_download_of_another_file_than_locked_names_both_hashes_and_keeps_nothing(
    serve: type[Server], tmp_path: Path
) -> None:
    expected = "0" * 64
    with pytest.raises(ToolchainError, match=rf"file.bin has the SHA-256 {DIGEST}.*expects {expected}"):
        download(serve().url, "file.bin", tmp_path, Lock({"file.bin": expected}))
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_download_of_a_file_that_is_not_locked_says_how_to_lock_it(
    serve: type[Server], tmp_path: Path
) -> None:
    with pytest.raises(ToolchainError, match=r"file.bin is not in .*khub matrix lock"):
        download(serve().url, "file.bin", tmp_path, Lock({}))


def test_download_from_nowhere_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="check the network"):
        download("http://127.0.0.1:1/file.bin", "file.bin", tmp_path, Recorder())


def test_lock_written_and_read_accepts_what_was_recorded_and_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.check("b_2:1.0~x.deb", "b" * 64)
    recorder.check("members of a.whl: x/include", "a" * 64)
    path = tmp_path / "toolchains.lock"
    write_lock(recorder.digests, path)
    lock = read_lock(path)
    lock.check("b_2:1.0~x.deb", "b" * 64)
    lock.check("members of a.whl: x/include", "a" * 64)
    with pytest.raises(ToolchainError):
        lock.check("members of a.whl: x/include", "c" * 64)
    assert [p.name for p in tmp_path.iterdir()] == ["toolchains.lock"]


def test_committed_lock_covers_every_package_of_the_matrix() -> None:
    lock, matrix = read_lock(), read_matrix()
    names = " ".join(lock.names)
    sources = [release.debian for release in matrix.cuda.values() if release.debian]
    sources += [release.debian for release in matrix.cross.values()]
    sources += [part for emulator in matrix.emulator.values() for part in (emulator.qemu, emulator.system)]
    for source in sources:
        for package in source.packages:
            file = package.replace("=", "_")
            assert f"{file}_{source.architecture}.deb" in names or f"{file}_all.deb" in names, package
    for release in matrix.cuda.values():
        for requirement in (*release.packages, *release.headers):
            assert requirement.replace("-", "_").replace("==", "-") + "-" in names, requirement
    for torch in matrix.torch:
        for wheel in torch.wheels:
            assert any(f"torch-{torch.release}-" in name and wheel.arch in name for name in lock.names)


def test_digest_of_members_depends_on_content_and_names_and_not_on_order() -> None:
    digest = digest_of_members([("a", b"1"), ("b", b"2")])
    assert digest == digest_of_members([("b", b"2"), ("a", b"1")])
    assert digest != digest_of_members([("a", b"2"), ("b", b"1")])


def test_unpack_packages_of_an_archive_that_is_not_there_says_what_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ARCHIVE_VARIABLE, (tmp_path / "nowhere").as_uri())
    source = DebianPackages("bookworm", "main", ("hello=2.10-3",))
    with pytest.raises(ToolchainError, match="apt-get cannot provide"):
        unpack_packages(tmp_path, source, tmp_path / "downloads", Recorder())


def test_unpack_packages_without_apt_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = DebianPackages("bookworm", "main", ("hello=2.10-3",))
    with pytest.raises(ToolchainError, match="no apt-get on this machine: hello=2.10-3 come"):
        unpack_packages(tmp_path, source, tmp_path / "downloads", Recorder())
