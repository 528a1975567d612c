"""Read chosen members of a remote zip (a wheel) by ranged requests, never the whole file.

A torch wheel is 500 MB; its headers are 11 MB. The central directory says where each member lies, and its
size and CRC, so that a member which is already at hand need not be fetched. Neighbouring members are fetched in one
request (gaps up to 64 KiB are cheaper than a round trip), and `zipfile` checks every CRC. `file:` URLs, as
`pip --find-links` gives, are read the same way.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote, urlsplit

import httpx

from hub_loader.errors import ToolchainError

from .traffic import Count, uncounted

# Measured on the headers of torch 2.5 to 2.15 for two architectures, what is at hand not fetched: 16 KiB costs
# 540 requests and 57 MB, 64 KiB 130 and 69, 256 KiB 68 and 77.
_GAP = 64 * 1024
_TAIL = 128 * 1024
_ATTEMPTS = 4

Known = Callable[[str, int, int], "bytes | None"]
"""A member's content, given its name, size and CRC-32, where it is at hand."""


class ByteSource(Protocol):
    """Random access to bytes somewhere else."""

    size: int

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` (exclusive)."""


class HttpSource:
    """A file behind a URL whose server honours `Range`.

    The first request brings the file's end, which is kept: a zip begins to be read there.
    """

    def __init__(self, client: httpx.Client, url: str, count: Count = uncounted) -> None:
        self._client = client
        self._url = url
        self._count = count
        self.requests = 0
        response = self._get(f"bytes=-{_TAIL}")
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            raise ToolchainError(f"{url}: the server does not say how long the file is; use another index")
        self.size = int(total)
        self._tail = response.content
        if len(self._tail) != min(_TAIL, self.size):
            raise ToolchainError(f"{url}: the server cut the file's end off; try again or use another index")

    def read_range(self, start: int, stop: int) -> bytes:
        kept = self.size - len(self._tail)
        missing = self._fetch(start, min(stop, kept)) if start < kept else b""
        return missing + self._tail[max(0, start - kept) : max(0, stop - kept)]

    def _fetch(self, start: int, stop: int) -> bytes:
        data = self._get(f"bytes={start}-{stop - 1}").content
        if len(data) != stop - start:
            raise ToolchainError(
                f"{self._url}: asked for {stop - start} bytes and got {len(data)}; try again"
            )
        return data

    def _get(self, byte_range: str) -> httpx.Response:
        for attempt in range(1, _ATTEMPTS + 1):
            self.requests += 1
            try:
                headers = {"Range": byte_range, "Accept-Encoding": "identity"}
                response = self._client.get(self._url, headers=headers)
                self._count(response.num_bytes_downloaded)
                if response.status_code == 206:
                    return response
                reason = f"HTTP {response.status_code} to a ranged request"
                if response.status_code < 500:
                    break
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            if attempt == _ATTEMPTS:
                break
        raise ToolchainError(f"{self._url}: {reason}; check the network or the package index")


class FileSource:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def read_range(self, start: int, stop: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


@contextmanager
def open_source(url: str, count: Count = uncounted) -> Iterator[ByteSource]:
    """Open `url` (http, https or file) for ranged reads; `count` is told what comes over the network.

    Raises:
        ToolchainError: unreachable, or a server that ignores `Range`.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        yield FileSource(Path(unquote(parts.path)))
        return
    with httpx.Client(follow_redirects=True, timeout=60) as client:
        yield HttpSource(client, url, count)


def read_members(
    source: ByteSource,
    wanted: Callable[[str], bool],
    known: Known = lambda name, size, crc: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each member that `wanted` accepts: what is `known`, then the rest in file order.

    `progress` is told bytes fetched so far and bytes to fetch.

    Raises:
        ToolchainError: not a zip, or a member's CRC is wrong.
    """
    file = _RangedFile(source)
    try:
        with zipfile.ZipFile(file) as archive:
            offsets = sorted(info.header_offset for info in archive.infolist())
            end_of = dict(zip(offsets, [*offsets, archive.start_dir][1:], strict=True))
            members = []
            for info in sorted(archive.infolist(), key=lambda i: i.header_offset):
                if info.is_dir() or not wanted(info.filename):
                    continue
                content = known(info.filename, info.file_size, info.CRC)
                if content is None:
                    members.append(info)
                else:
                    yield info.filename, content
            spans = _coalesce([(i.header_offset, end_of[i.header_offset]) for i in members])
            total = sum(stop - start for start, stop in spans)
            pending = iter(members)
            member = next(pending, None)
            done = 0
            for start, stop in spans:
                file.load(start, stop)
                done += stop - start
                progress(done, total)
                while member is not None and member.header_offset < stop:
                    yield member.filename, archive.read(member)
                    member = next(pending, None)
    except zipfile.BadZipFile as error:
        raise ToolchainError(f"the wheel is damaged: {error}; try again or use another index") from None


def safe_path(name: str) -> PurePosixPath:
    """A member's name as a path that stays inside the folder it is unpacked to.

    Raises:
        ToolchainError: it would not.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ToolchainError(f"the wheel holds the unsafe path {name!r}: use another index")
    return path


def _coalesce(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ascending spans whose gap is cheaper to read than to skip."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and start - joined[-1][1] <= _GAP:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


class _RangedFile(io.RawIOBase):
    """The seekable file that `zipfile` wants, over one loaded span of a source."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._position = 0
        self.load(max(0, source.size - _TAIL), source.size)

    def load(self, start: int, stop: int) -> None:
        """Make bytes `start` to `stop` available without further requests."""
        self._start = start
        self._span = self._source.read_range(start, stop)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._source.size if size < 0 else min(self._position + size, self._source.size)
        if stop <= self._position:
            return b""
        if self._position < self._start or stop > self._start + len(self._span):
            self.load(self._position, stop)
        data = self._span[self._position - self._start : stop - self._start]
        self._position = stop
        return data
