"""Headers out of wheels: what the cache has is copied, what it has not is fetched, what lies is found out.

The index is a real server on loopback, asked by the real pip.
"""

from __future__ import annotations

import io
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from build_matrix.toolchain.cache import State, ToolchainCache
from build_matrix.toolchain.pins import Lock, Recorder, digest_of_members
from build_matrix.toolchain.pip import best_wheel, locate_wheel
from build_matrix.toolchain.wheel_files import LocalCopies, wheel_files
from hub_loader.errors import ToolchainError

NOISE = bytes(range(256)) * 4096  # 1 MiB, stored: gaps that are worth a request
OLD = {"sdk/include/a.h": b"a" * 300_000, "sdk/include/b.h": b"old" * 10, "lib/x.so": NOISE}
NEW = {"sdk/include/a.h": b"a" * 300_000, "sdk/include/b.h": b"new" * 10, "lib/x.so": NOISE}
OLD_WHEEL = "sdk-1.0-py3-none-manylinux_2_28_x86_64.whl"
NEW_WHEEL = "sdk-1.1-py3-none-manylinux_2_28_aarch64.whl"
FOLDER = "sdk/include"


class Index(ThreadingHTTPServer):
    """A package index of `wheels` of the package sdk. `sent` holds (file name, bytes of the answer's body)."""

    def __init__(self, wheels: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheels = wheels
        self.sent: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/simple"

    def sent_of(self, wheel: str) -> int:
        return sum(size for name, size in self.sent if name == wheel)


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        links = "".join(f'<a href="/files/{wheel}">{wheel}</a>' for wheel in self.server.wheels)
        content = self.server.wheels.get(name, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match:
            start = int(match[1]) if match[1] else max(0, len(content) - int(match[2]))
            stop = int(match[2]) + 1 if match[1] else len(content)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            content = content[start:stop]
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
        self.server.sent.append((name, len(content)))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def archive(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    server = Index({OLD_WHEEL: archive(OLD), NEW_WHEEL: archive(NEW)})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def headers(members: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in members.items() if name.startswith(FOLDER)}


LOCK = Lock(
    {
        f"members of {wheel}: {FOLDER}": digest_of_members(headers(members).items())
        for wheel, members in ((OLD_WHEEL, OLD), (NEW_WHEEL, NEW))
    }
)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def forged(content: bytes, crc: int) -> bytes:
    """`content` with its last four bytes changed so that its CRC-32 is `crc`; the CRC is linear in them."""
    base = zlib.crc32(content[:-4] + bytes(4))
    solved: dict[
        int, tuple[int, int]
    ] = {}  # by highest bit: what flipping the bits of a word does to the CRC
    for bit in range(32):
        word = 1 << bit
        effect = zlib.crc32(content[:-4] + word.to_bytes(4, "little")) ^ base
        while effect and (top := effect.bit_length()) in solved:
            effect, word = effect ^ solved[top][0], word ^ solved[top][1]
        if effect:
            solved[effect.bit_length()] = (effect, word)
    wanted, answer = crc ^ base, 0
    while wanted:
        effect, word = solved[wanted.bit_length()]
        wanted, answer = wanted ^ effect, answer ^ word
    return content[:-4] + answer.to_bytes(4, "little")


def test_wheel_files_of_a_release_beside_another_fetches_only_what_differs(
    index: Index, tmp_path: Path
) -> None:
    cache = ToolchainCache(tmp_path, LOCK)
    wheel_files(cache, "sdk==1.0", "x86_64", [FOLDER])
    assert index.sent_of(OLD_WHEEL) > 300_000
    assert files(wheel_files(cache, "sdk==1.1", "aarch64", [FOLDER])) == headers(NEW)
    assert index.sent_of(NEW_WHEEL) < 140_000  # the directory with the end of the file, and b.h


def test_wheel_files_counts_every_byte_of_wheels_that_came_and_nothing_from_the_cache(
    index: Index, tmp_path: Path
) -> None:
    cache = ToolchainCache(tmp_path, LOCK)
    wheel_files(cache, "sdk==1.0", "x86_64", [FOLDER])
    assert cache.traffic.of("sdk") == cache.traffic.total == index.sent_of(OLD_WHEEL)
    again = ToolchainCache(tmp_path, LOCK)
    wheel_files(again, "sdk==1.0", "x86_64", [FOLDER])
    assert again.traffic.total == 0


def test_wheel_files_when_a_local_file_has_the_crc_and_other_bytes_fetches_everything(
    index: Index, tmp_path: Path
) -> None:
    cache = ToolchainCache(tmp_path, LOCK)
    content = OLD["sdk/include/a.h"]
    lie = forged(b"b" * len(content), zlib.crc32(content))
    assert zlib.crc32(lie) == zlib.crc32(content) and lie != content
    (wheel_files(cache, "sdk==1.0", "x86_64", [FOLDER]) / "sdk/include/a.h").write_bytes(lie)
    assert files(wheel_files(cache, "sdk==1.1", "aarch64", [FOLDER])) == headers(NEW)
    assert index.sent_of(NEW_WHEEL) > 300_000


def test_wheel_files_of_a_wheel_that_is_not_as_locked_is_refused_even_beside_another(
    index: Index, tmp_path: Path
) -> None:
    names = {f"members of {wheel}: {FOLDER}": "0" * 64 for wheel in (NEW_WHEEL,)}
    right = f"members of {OLD_WHEEL}: {FOLDER}"
    cache = ToolchainCache(tmp_path, Lock({**names, right: LOCK.expected(right) or ""}))
    wheel_files(cache, "sdk==1.0", "x86_64", [FOLDER])
    with pytest.raises(ToolchainError, match="the index or mirror serves another file"):
        wheel_files(cache, "sdk==1.1", "aarch64", [FOLDER])
    assert [state for _, state in cache.verify()] == [State.WHOLE]


def test_wheel_files_where_nothing_is_locked_yet_copies_nothing(index: Index, tmp_path: Path) -> None:
    recorder = Recorder()
    cache = ToolchainCache(tmp_path, recorder)
    wheel_files(cache, "sdk==1.0", "x86_64", [FOLDER])
    wheel_files(cache, "sdk==1.1", "aarch64", [FOLDER])
    assert index.sent_of(NEW_WHEEL) > 300_000
    assert {name: LOCK.expected(name) for name in recorder.digests} == recorder.digests


def test_wheel_files_by_two_at_once_gives_both_the_same_whole_part(index: Index, tmp_path: Path) -> None:
    found: list[Path] = []

    def provide() -> None:
        found.append(wheel_files(ToolchainCache(tmp_path, LOCK), "sdk==1.0", "x86_64", [FOLDER]))

    threads = [threading.Thread(target=provide) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert files(found[0]) == headers(OLD)
    assert [state for _, state in ToolchainCache(tmp_path, LOCK).verify()] == [State.WHOLE]


def test_local_copies_of_a_changed_a_lost_and_a_whole_file_gives_the_whole_one_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, content in ((first, b"bad"), (second, b"yes")):
        folder.mkdir()
        (folder / "a.h").write_bytes(content)
    copies = LocalCopies([tmp_path / "gone", first, second])
    assert copies("a.h", 3, zlib.crc32(b"yes")) == b"yes"
    assert copies("a.h", 3, zlib.crc32(b"no!")) is None
    assert copies("a.h/b.h", 3, zlib.crc32(b"yes")) is None
    assert copies.taken == 1


def test_locate_wheel_reads_the_index_and_no_wheel(index: Index) -> None:
    wheel = locate_wheel("sdk==1.1", platform="manylinux_2_28_aarch64")
    assert wheel.name == NEW_WHEEL
    assert {name for name, _ in index.sent} == {""}


def test_locate_wheel_of_a_version_that_the_index_lacks_says_what_was_asked(index: Index) -> None:
    with pytest.raises(
        ToolchainError, match=r"no wheel of sdk==1.1 for Python 3.11 on manylinux_2_28_x86_64"
    ):
        locate_wheel("sdk==1.1", platform="manylinux_2_28_x86_64")


def test_best_wheel_takes_the_newest_tag_then_the_highest_build_and_only_that_version() -> None:
    from packaging.version import Version

    wheels = [
        "https://h/t-2.0.0.tar.gz",
        "https://h/t-2.0.0-cp311-cp311-manylinux2014_x86_64.whl",
        "https://h/t-2.0.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "https://user:****@h/t-2.0.0-1-cp311-cp311-manylinux_2_28_x86_64.whl",
        "https://h/t-2.0.0%2Bcpu-2-cp311-cp311-manylinux_2_28_x86_64.whl",
        "https://h/t-2.0.0-3-cp310-cp310-manylinux_2_28_x86_64.whl",
        "https://h/t-2.0.0-3-cp311-cp311-manylinux_2_28_aarch64.whl",
    ]
    platforms = ["manylinux_2_28_x86_64", "manylinux2014_x86_64"]
    best = best_wheel(wheels, Version("2.0.0"), platforms, "3.11")
    assert best == "https://h/t-2.0.0-1-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert best_wheel(wheels, Version("2.0.1"), platforms, "3.11") is None
