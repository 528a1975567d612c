"""Two servers, each with a data folder of its own, on one Postgres database and one S3 bucket."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from khub_process import Hub, khub

CONTENT = os.urandom(300_000)
LARGE = os.urandom(1 << 20) * 20  # sent to S3 in parts
SHA256 = hashlib.sha256(LARGE).hexdigest()
RESOLVE = "/kernels/acme/relu/resolve/main"


@pytest.fixture
def servers(
    start_hub: Callable[..., Hub], tmp_path: Path, postgres_url: str, s3_url: str
) -> Iterator[list[httpx.Client]]:
    """Clients of both, with a token to write; the second sends readers to the bucket."""
    shared = ("--database", postgres_url, "--storage", s3_url)
    hubs = [
        start_hub(tmp_path / "one", *shared),
        start_hub(tmp_path / "two", *shared, "--redirect"),
    ]
    made = khub(
        "registry", "token", "create", "--data", tmp_path / "one", *shared, "--org", "acme", "--write"
    )
    headers = {"Authorization": f"Bearer {made.stdout.splitlines()[-1]}"}
    clients = [httpx.Client(base_url=hub.url, headers=headers, timeout=60) for hub in hubs]
    yield clients
    for client, hub in zip(clients, hubs, strict=True):
        client.close()
        assert hub.stop() == 0


def commit(client: httpx.Client, *lines: dict[str, object], **header: str) -> httpx.Response:
    first = {"key": "header", "value": {"summary": "test", **header}}
    return client.post(
        "/api/kernels/acme/relu/commit/main", content="\n".join(map(json.dumps, (first, *lines)))
    )


def file(path: str, content: bytes) -> dict[str, object]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


@pytest.mark.slow
def test_servers_when_they_share_database_and_bucket_then_they_are_one_hub(
    servers: list[httpx.Client],
) -> None:
    one, two = servers
    made = one.post("/api/repos/create", json={"name": "relu", "organization": "acme", "type": "kernel"})
    assert made.status_code == 200, made.text
    head = commit(two, file("build/x.so", CONTENT), file("small.txt", b"small")).json()["commitOid"]
    assert one.get("/api/kernels/acme/relu").json()["sha"] == head
    assert commit(one, file("a", b"1"), parentCommit=head).status_code == 200
    assert commit(two, file("b", b"2"), parentCommit=head).status_code == 412

    # An upload address that one server signed is good at the other.
    lfs = "/kernels/acme/relu.git/info/lfs/objects"
    wanted = {"operation": "upload", "objects": [{"oid": SHA256, "size": len(LARGE)}]}
    (item,) = one.post(f"{lfs}/batch", json=wanted).json()["objects"]
    address = httpx.URL(item["actions"]["upload"]["href"])
    assert two.put(address.raw_path.decode(), content=LARGE).status_code == 200
    assert "actions" not in two.post(f"{lfs}/batch", json=wanted).json()["objects"][0]
    value = {"path": "large.so", "algo": "sha256", "oid": SHA256, "size": len(LARGE)}
    assert commit(one, {"key": "lfsFile", "value": value}).status_code == 200

    # Content comes through the first server, whole and in ranges, and its headers without it.
    assert one.get(f"{RESOLVE}/small.txt").content == b"small"
    assert one.get(f"{RESOLVE}/large.so").content == LARGE
    head_of, got = one.head(f"{RESOLVE}/build/x.so"), one.get(f"{RESOLVE}/build/x.so")
    assert got.content == CONTENT
    for name in ("etag", "content-length", "x-repo-commit", "accept-ranges", "content-type"):
        assert head_of.headers[name] == got.headers[name]
    part = one.get(f"{RESOLVE}/build/x.so", headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, CONTENT[1000:2000])
    assert part.headers["content-range"] == "bytes 1000-1999/300000"
    past = one.get(f"{RESOLVE}/build/x.so", headers={"Range": "bytes=300000-"})
    assert (past.status_code, past.headers["content-range"]) == (416, "bytes */300000")

    # The second sends large files' readers to the bucket, and keeps the headers that say what they get.
    sent = two.get(f"{RESOLVE}/large.so")
    assert sent.status_code == 302 and "X-Amz-Signature" in sent.headers["location"]
    assert sent.headers["x-linked-etag"] == f'"{SHA256}"' and sent.headers["x-repo-commit"]
    assert httpx.get(sent.headers["location"]).content == LARGE
    assert two.head(f"{RESOLVE}/large.so").status_code == 200
    assert two.get(f"{RESOLVE}/small.txt").content == b"small"
