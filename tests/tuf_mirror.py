"""A mirror of a real hub's TUF metadata that lies: shows old states, mixes them, forges, never ends, says nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx

_ENDLESS = b" " * (1 << 16)


@dataclass
class Mirror:
    """Serves `files` (metadata by name) as files and as a bundle; everything else comes from `hub`.

    `endless` are paths whose body never ends, `missing` those that are answered with the status given, `bodies` those
    with other content; `requests` are the paths asked.
    """

    hub: str
    files: dict[str, bytes] = field(default_factory=dict)
    endless: set[str] = field(default_factory=set)
    missing: dict[str, int] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def show(self, org: str) -> dict[str, bytes]:
        """Take over what the hub shows now; returns it."""
        self.files = dict(state(self.hub, org))
        return self.files

    def answer(self, path: str) -> tuple[int, bytes]:
        """(status, body) of a GET."""
        if path in self.missing:
            return self.missing[path], b"{}"
        if path in self.bodies:
            return 200, self.bodies[path]
        if path == "/tuf/bundle":
            return 200, json.dumps({"files": {n: d.decode() for n, d in self.files.items()}}).encode()
        if path.startswith("/tuf/metadata/"):
            data = self.files.get(path.removeprefix("/tuf/metadata/"))
            return (404, b"{}") if data is None else (200, data)
        return 404, b"{}"

    def pass_on(self, path: str) -> httpx.Response:
        """What the hub answers."""
        return httpx.get(f"{self.hub}{path}")


def state(hub: str, org: str) -> dict[str, bytes]:
    """All metadata that a hub shows for an organization, every root among it."""
    answer = httpx.get(f"{hub}/tuf/bundle?namespace={org}&root=0").json()
    return {name: text.encode() for name, text in answer["files"].items()}


@contextmanager
def mirror_of(hub: str) -> Iterator[Mirror]:
    """A running mirror."""
    mirror = Mirror(hub)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(mirror))
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.requests.append(self.path)
            path = urlsplit(self.path).path
            if path in mirror.endless:
                self.send_response(200)
                self.end_headers()
                self._endless()
                return
            if path.startswith("/tuf/") or path in mirror.bodies:
                status, data, headers = *mirror.answer(path), {}
            else:
                passed = mirror.pass_on(self.path)
                status, data, headers = passed.status_code, passed.content, _headers(passed)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _endless(self) -> None:
            try:
                while True:
                    self.wfile.write(_ENDLESS)
            except OSError:
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


def _headers(answer: httpx.Response) -> dict[str, str]:
    wanted = ("x-repo-commit", "etag", "x-error-code", "x-error-message", "location", "link")
    return {name: value for name, value in answer.headers.items() if name.lower() in wanted}
