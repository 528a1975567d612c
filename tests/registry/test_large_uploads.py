"""Gigabytes in and out of a server whose memory stays what it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from khub_process import StartHub

PIECE = bytes(range(256)) * 4096  # 1 MB


def pieces(count: int) -> Iterator[bytes]:
    """`count` megabytes, no two alike."""
    for number in range(count):
        yield number.to_bytes(8, "big") + PIECE[8:]


def resident(process: int, which: str) -> int:
    """A figure of the process's memory in bytes: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(which))


@pytest.mark.heavy
def test_upload_when_it_has_gigabytes_then_memory_stays_and_every_byte_comes_back(
    start_hub: StartHub, tmp_path: Path, storage: str | None
) -> None:
    megabytes = 2048 if storage is None else 512  # the S3 server of the tests needs as much memory
    hub = start_hub(tmp_path / "data", *(() if storage is None else ("--storage", storage)))
    owner = {"Authorization": f"Bearer {hub.token('acme')}"}
    digest = hashlib.sha256()
    for piece in pieces(megabytes):
        digest.update(piece)
    oid, size = digest.hexdigest(), megabytes << 20
    with httpx.Client(base_url=hub.url, headers=owner, timeout=600) as client:
        client.post("/api/repos/create", json={"name": "k", "organization": "acme", "type": "kernel"})
        before = resident(hub.process.pid, "VmRSS")
        wanted = {"operation": "upload", "objects": [{"oid": oid, "size": size}]}
        (item,) = client.post("/kernels/acme/k.git/info/lfs/objects/batch", json=wanted).json()["objects"]
        sent = client.put(item["actions"]["upload"]["href"], content=pieces(megabytes))
        assert sent.status_code == 200, sent.text
        lines = [
            {"key": "header", "value": {"summary": "large"}},
            {"key": "lfsFile", "value": {"path": "large.so", "algo": "sha256", "oid": oid, "size": size}},
        ]
        made = client.post("/api/kernels/acme/k/commit/main", content="\n".join(map(json.dumps, lines)))
        assert made.status_code == 200, made.text
        came = hashlib.sha256()
        with client.stream("GET", "/kernels/acme/k/resolve/main/large.so") as answer:
            for piece in answer.iter_bytes(1 << 20):
                came.update(piece)
        assert came.hexdigest() == oid
    # A few parts on their way to a bucket, and nothing that grows with the file.
    assert resident(hub.process.pid, "VmHWM") - before < 200 << 20
    assert hub.stop() == 0
