"""A `khub serve` of its own whose log is kept, for tests of what operators see."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from khub_process import Hub, khub_command, khub_environment


@dataclass
class ObservedHub(Hub):
    """A running registry and the file of its log."""

    log: Path

    def lines(self) -> list[dict[str, Any]]:
        """The log, where it is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def metrics(self, headers: dict[str, str] | None = None) -> dict[str, float]:
        """Every sample: name with labels -> value."""
        answer = httpx.get(f"{self.url}/metrics", headers=headers)
        assert answer.status_code == 200, answer.text
        rows = re.findall(r"^([a-z]\S*?(?:\{.*\})?) (\S+)$", answer.text, re.MULTILINE)
        return {name: float(value) for name, value in rows}


def start_observed(folder: Path, *arguments: str, **environment: str) -> ObservedHub:
    """Start one on `folder/data`; its log goes to `folder/log`."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            khub_command("serve", "--data", folder / "data", "--port", "0", "--json", *arguments),
            env=khub_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "log").read_text()
    return ObservedHub(json.loads(line)["url"], folder / "data", process, folder / "log")


def end(hub: Hub) -> None:
    """Kill it if it runs."""
    if hub.process.poll() is None:
        hub.stop(signal.SIGKILL)


def commit_body(path: str, content: bytes) -> bytes:
    """The body of a commit of one file."""
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    lines = ({"key": "header", "value": {"summary": "test"}}, {"key": "file", "value": value})
    return "\n".join(json.dumps(line) for line in lines).encode()


def until(true: Callable[[], bool]) -> None:
    """Wait until it is so; half a minute at most."""
    for _ in range(600):
        with suppress(httpx.TransportError):
            if true():
                return
        time.sleep(0.05)
    raise AssertionError("it did not become so")


_LARGE = commit_body("large.bin", b"x" * 300_000)


class Upload:
    """A commit of `large.bin` to a new repository `acme/relu`, whose body has come by half."""

    def __init__(self, hub: ObservedHub) -> None:
        owner = {"Authorization": f"Bearer {hub.token('acme')}"}
        new = {"organization": "acme", "name": "relu", "type": "kernel"}
        assert httpx.post(f"{hub.url}/api/repos/create", headers=owner, json=new).status_code == 200
        url = urlsplit(hub.url)
        self.socket = socket.create_connection((url.hostname, url.port))
        head = [
            "POST /api/kernels/acme/relu/commit/main HTTP/1.1",
            f"Host: {url.netloc}",
            f"Authorization: {owner['Authorization']}",
            f"Content-Length: {len(_LARGE)}",
        ]
        self.socket.sendall("\r\n".join([*head, "", ""]).encode() + _LARGE[: len(_LARGE) // 2])
        until(lambda: hub.metrics()["khub_requests_in_flight"] == 2)  # this upload and the question

    def finish(self) -> bytes:
        """Send the rest; returns the answer up to the connection's end."""
        self.socket.sendall(_LARGE[len(_LARGE) // 2 :])
        answer = b""
        while piece := self.socket.recv(65536):
            answer += piece
        return answer
