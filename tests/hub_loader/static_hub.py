"""A hub that serves folders, counts requests and fails on demand."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class StaticHub:
    """`refs[repo][branch]` is a commit, `files[commit]` the folder it shows; `requests` are the paths asked.

    `truncated` maps a file name to how many bytes of it are sent under its full Content-Length, `replaced`
    one to the bytes sent instead, `status` a path fragment to an (HTTP status, X-Error-Code) answered.
    """

    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=dict)
    replaced: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    endpoint: str = ""

    def __enter__(self) -> StaticHub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, repo_id: str, branch: str, folder: Path) -> str:
        """Let `branch` of `repo_id` show `folder`; returns the commit."""
        commit = f"{len(self.files) + 1:040x}"
        self.refs.setdefault(repo_id, {})[branch] = commit
        self.files[commit] = folder
        return commit

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """(status, error code, body) for a GET of `path`."""
        for fragment, (status, code) in self.status.items():
            if fragment in path:
                return status, code, b""
        parts = unquote(path).strip("/").split("/")
        if parts[0] == "api" and parts[-1] == "refs":
            return self._refs("/".join(parts[2:4]))
        if parts[0] == "kernels" and parts[3] == "resolve":
            return self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        return 404, "", b""

    def _refs(self, repo_id: str) -> tuple[int, str, bytes]:
        if repo_id not in self.refs:
            return 404, "RepoNotFound", b""
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in self.refs[repo_id].items()
        ]
        return 200, "", json.dumps({"branches": branches, "tags": [], "converts": []}).encode()

    def _file(self, repo_id: str, commit: str, path: str) -> tuple[int, str, bytes]:
        if repo_id not in self.refs:
            return 404, "RepoNotFound", b""
        if commit not in self.refs[repo_id].values():
            return 404, "RevisionNotFound", b""
        file = self.files[commit] / path
        if not file.is_file():
            return 404, "EntryNotFound", b""
        return 200, "", self.replaced.get(file.name, file.read_bytes())


def _handler(hub: StaticHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(self.path)
            hub.tokens.append(self.headers.get("Authorization"))
            status, code, body = hub.answer(self.path)
            cut = hub.truncated.get(self.path.rpartition("/")[2])
            head = [
                f"HTTP/1.1 {status} -",
                f"Content-Length: {len(body)}",
                *([f"X-Error-Code: {code}"] if code else []),
            ]
            self.wfile.write("\r\n".join([*head, "", ""]).encode() + body[:cut])
            self.close_connection = cut is not None

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
