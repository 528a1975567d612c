"""A hub that serves folders, counts requests and fails on demand."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from signing import sign_package, trust_key


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # many processes connect at once


@dataclass
class StaticHub:
    """`refs[repo][branch]` is a commit, `files[commit]` the folder it shows; `requests` are the paths asked.

    `truncated` maps a file name to how many bytes of it are sent under its full Content-Length, `replaced`
    one to the bytes sent instead, `status` a path fragment to an (HTTP status, X-Error-Code) answered.
    `moved[repo]` is where a renamed repository is redirected to, `trusted` are the organizations vouched for,
    `lfs` the file names that the tree lists by SHA-256, `page` how many entries a page of it has,
    `names_commit` whether answers carry X-Repo-Commit. A request whose path ends in a key of `together` is
    answered when all that share its barrier have arrived: only requests sent at once are answered at all.

    A Range request is answered as such where `ranges` is true; `sent` counts the bytes of each file's bodies.
    `zeros` maps a file name to the number of zero bytes sent instead of a file that need not be on disk, `pace`
    one to the seconds between its blocks of `block` bytes, `endless` are sent without a length and without an end,
    `headers` are added to every answer. Where `signs` is true, a package with an index that is published unsigned
    is signed, and its signer trusted. `elsewhere` maps a file name to the address of another hub that has its
    bytes. With `certificate`, a file of a certificate and its key, it is served by https.
    """

    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    truncated: dict[str, int] = field(default_factory=dict)
    replaced: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    trusted: set[str] = field(default_factory=set)
    lfs: tuple[str, ...] = (".so",)
    page: int = 1000
    names_commit: bool = True
    together: dict[str, threading.Barrier] = field(default_factory=dict)
    agents: list[str | None] = field(default_factory=list)
    ranges: bool = True
    sent: Counter[str] = field(default_factory=Counter)
    zeros: dict[str, int] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)
    block: int = 1 << 20
    endless: set[str] = field(default_factory=set)
    headers: dict[str, str] = field(default_factory=dict)
    signs: bool = True
    elsewhere: dict[str, str] = field(default_factory=dict)
    certificate: Path | None = None
    endpoint: str = ""

    def __enter__(self) -> StaticHub:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if self.certificate is None else "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
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
        if self.signs and (folder / "index.json").is_file() and not (folder / "index.json.dsse").exists():
            sign_package(folder, repo_id)
            trust_key(self.endpoint, repo_id.partition("/")[0])
        self.refs.setdefault(repo_id, {})[branch] = commit
        self.files[commit] = folder
        return commit

    def clear(self) -> None:
        """Forget what was asked."""
        self.requests.clear()

    def answer(self, url: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) for a GET of `url`."""
        for fragment, (status, code) in self.status.items():
            if fragment in url:
                return status, {"X-Error-Code": code} if code else {}, b""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "organizations"]:
            return 200, {}, json.dumps({"trustedKernelPublisher": parts[2] in self.trusted}).encode()
        start = 2 if parts[0] == "api" else 1
        repo_id, what, rest = "/".join(parts[start : start + 2]), parts[start + 2], parts[start + 3 :]
        if repo_id in self.moved:
            return 307, {"Location": url.replace(repo_id, self.moved[repo_id])}, b""
        if repo_id not in self.refs:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if what == "refs":
            return self._refs(repo_id)
        commit = self.refs[repo_id].get(rest[0], rest[0])
        if commit not in self.refs[repo_id].values():
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        headers = {"X-Repo-Commit": commit} if self.names_commit else {}
        if what == "tree":
            return self._tree(commit, headers, int(query.get("cursor", ["0"])[0]))
        file = self.files[commit] / "/".join(rest[1:])
        if file.name in self.elsewhere:
            return 302, {"Location": self.elsewhere[file.name] + url, **headers}, b""
        if file.name in self.zeros:
            return 200, headers, b""
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", **headers}, b""
        return 200, headers, self.replaced.get(file.name, file.read_bytes())

    def _refs(self, repo_id: str) -> tuple[int, dict[str, str], bytes]:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in self.refs[repo_id].items()
        ]
        return 200, {}, json.dumps({"branches": branches, "tags": [], "converts": []}).encode()

    def _tree(self, commit: str, headers: dict[str, str], start: int) -> tuple[int, dict[str, str], bytes]:
        found = sorted(path for path in self.files[commit].rglob("*") if "scratch" not in path.parts)
        entries = [self._entry(path, path.relative_to(self.files[commit]).as_posix()) for path in found]
        if start + self.page < len(entries):
            # Another host, as behind a proxy that does not rewrite links.
            headers["Link"] = f'<http://elsewhere.invalid/tree?cursor={start + self.page}>; rel="next"'
        return 200, headers, json.dumps(entries[start : start + self.page]).encode()

    def _entry(self, file: Path, path: str) -> dict[str, object]:
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        data = file.read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "oid": oid, "size": len(data)}
        if path.endswith(self.lfs):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


def _handler(hub: StaticHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(self.path)
            hub.tokens.append(self.headers.get("Authorization"))
            hub.agents.append(self.headers.get("User-Agent"))
            for ending, barrier in hub.together.items():
                if self.path.endswith(ending):
                    barrier.wait(timeout=20)
            status, headers, body = hub.answer(self.path)
            name = urlsplit(self.path).path.rpartition("/")[2]
            if status == 200 and name in hub.endless:
                self._write_endlessly(headers)
                return
            size = hub.zeros[name] if status == 200 and name in hub.zeros else len(body)
            cut, start = hub.truncated.get(name), 0
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if wanted and hub.ranges and status == 200:
                start, status = int(wanted[1]), 206
                headers = {**headers, "Content-Range": f"bytes {start}-{size - 1}/{size}"}
            head = [f"HTTP/1.1 {status} -", f"Content-Length: {size - start}"]
            head += [f"{key}: {value}" for key, value in {**headers, **hub.headers}.items()]
            self.wfile.write("\r\n".join([*head, "", ""]).encode())
            self.close_connection = cut is not None
            end = size if cut is None else min(cut, size)
            for offset in range(start, end, hub.block):
                length = min(hub.block, end - offset)
                block = bytes(length) if name in hub.zeros else body[offset : offset + length]
                time.sleep(hub.pace.get(name, 0))
                try:
                    self.wfile.write(block)
                except OSError:  # the client was killed
                    self.close_connection = True
                    return
                hub.sent[name] += length

        def _write_endlessly(self, headers: dict[str, str]) -> None:
            self.close_connection = True
            head = ["HTTP/1.1 200 -", *(f"{key}: {value}" for key, value in headers.items())]
            self.wfile.write("\r\n".join([*head, "Connection: close", "", ""]).encode())
            name = urlsplit(self.path).path.rpartition("/")[2]
            try:
                while hub.endless:
                    self.wfile.write(bytes(hub.block))
                    hub.sent[name] += hub.block
            except OSError:  # the client has had enough
                return

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
