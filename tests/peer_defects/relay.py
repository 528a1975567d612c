"""A relay before a real registry that adds what a hub may do to its clients: move, vouch and lie."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = ("connection", "transfer-encoding", "content-length", "date", "server")


@dataclass
class Relay:
    """Passes requests on to `target`.

    `moved[repo]` is where a renamed repository is redirected to, as the Hub does; `trusted` are the
    organizations whose overview says `trustedKernelPublisher`; `lies[asked]` is the commit whose content is
    answered under the name of the commit asked for; `requests` are the paths asked.
    """

    target: str
    moved: dict[str, str] = field(default_factory=dict)
    trusted: set[str] = field(default_factory=set)
    lies: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Relay:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """(status, headers, body) for a request."""
        for old, new in self.moved.items():
            if f"/{old}/" in path:
                return 307, [("Location", path.replace(old, new)), ("Content-Length", "0")], b""
        for asked, served in self.lies.items():
            if asked in path:
                status, found, data = self._pass_on(method, path.replace(asked, served), headers, body)
                told = [(name, value.replace(served, asked)) for name, value in found]
                return status, told, data.replace(served.encode(), asked.encode())
        status, found, data = self._pass_on(method, path, headers, body)
        parts = path.split("/")
        if parts[1:3] == ["api", "organizations"] and parts[3] in self.trusted:
            data = json.dumps(json.loads(data) | {"trustedKernelPublisher": True}).encode()
            found = [(n, str(len(data)) if n.lower() == "content-length" else v) for n, v in found]
        return status, found, data

    def _pass_on(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(urlsplit(self.target).netloc, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response: HTTPResponse = connection.getresponse()
            data = response.read()
            found = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP]
            length = response.getheader("Content-Length") if method == "HEAD" else str(len(data))
            return response.status, [*found, ("Content-Length", length or "0")], data
        finally:
            connection.close()


def _handler(relay: Relay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _relay(self) -> None:
            relay.requests.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            status, headers, data = relay.answer(self.command, self.path, sent, body)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._relay()

        def do_HEAD(self) -> None:
            self._relay()

        def do_POST(self) -> None:
            self._relay()

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
