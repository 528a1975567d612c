"""What somebody sends who means harm: none of it gets at another's repository, outside the blobs, or past a check."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from khub_process import Hub, StartHub


@pytest.fixture(scope="module")
def web(hub: Hub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def owner(hub: Hub) -> dict[str, str]:
    return {"Authorization": f"Bearer {hub.token('target')}"}


@pytest.fixture(scope="module")
def attacker(hub: Hub) -> dict[str, str]:
    return {"Authorization": f"Bearer {hub.token('mallory')}"}


@pytest.fixture
def repo(web: httpx.Client, owner: dict[str, str]) -> str:
    name = f"attack-{secrets.token_hex(4)}"
    web.post("/api/repos/create", json={"name": name, "organization": "target"}, headers=owner)
    assert _commit(web, owner, f"target/{name}", [_file("a.txt", b"0123456789")]).status_code == 200
    return f"target/{name}"


def _file(path: str, content: bytes) -> dict[str, object]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def _commit(
    web: httpx.Client,
    headers: dict[str, str],
    repo: str,
    lines: list[dict[str, object]],
    parent: str | None = None,
) -> httpx.Response:
    header = {"key": "header", "value": {"summary": "s", **({"parentCommit": parent} if parent else {})}}
    body = "\n".join(json.dumps(line) for line in [header, *lines])
    return web.post(f"/api/models/{repo}/commit/main", content=body, headers=headers)


def _lfs(web: httpx.Client, headers: dict[str, str], repo: str, content: bytes) -> httpx.Response:
    entry = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    ask = {"operation": "upload", "objects": [entry]}
    return web.post(f"/{repo}.git/info/lfs/objects/batch", json=ask, headers=headers)


# -- paths


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fregistry.sqlite",
        "%2e%2e/%2e%2e/registry.sqlite",
        "..%5c..%5cregistry.sqlite",
        "%2fetc%2fpasswd",
        "a.txt%00.png",
        "%252e%252e%252fregistry.sqlite",
        "..;/registry.sqlite",
        "a.txt/",
        "./a.txt",
        "%c0%ae%c0%ae/x",
        "a.txt%0d%0aX-Injected:%201",
        "//etc/passwd",
        "%ff",
        "%ed%a0%80",
    ],
)
@pytest.mark.parametrize(
    "address", ["/{}/resolve/main/{}", "/api/kernels/{}/tree/main/{}", "/kernels/{}/resolve/{}/a.txt"]
)
def test_path_when_it_is_written_to_escape_then_there_is_no_such_file(
    hub: Hub, repo: str, address: str, path: str
) -> None:
    """Sent as it is: a client library would tidy it up."""
    import http.client

    url = httpx.URL(hub.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
    connection.request("GET", address.format(repo, path))
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status in (400, 404), body
    assert b"SQLite" not in body and b"root:" not in body and answer.headers["X-Injected"] is None


@pytest.mark.parametrize(
    "name", ["../x", "..", "a/b", "api", "kernels", ".git", "x\n", "x\0", "", "é", "a" * 97, "x.git"]
)
@pytest.mark.parametrize("part", ["name", "organization"])
def test_create_when_the_name_is_no_name_then_400(
    web: httpx.Client, owner: dict[str, str], name: str, part: str
) -> None:
    if (name, part) in (("api", "name"), ("kernels", "name")):
        return  # as a repository's name it hides nothing
    body = {"name": "fine", "organization": "target", part: name}
    refused = web.post("/api/repos/create", json=body, headers=owner)
    assert refused.status_code in (400, 403) if part == "organization" else refused.status_code == 400
    moved = web.post(
        "/api/repos/move", json={"fromRepo": f"target/{name}", "toRepo": "target/b"}, headers=owner
    )
    assert part == "organization" or moved.status_code in (400, 404)


def test_branch_when_its_name_is_a_pull_requests_then_400(
    web: httpx.Client, owner: dict[str, str], repo: str
) -> None:
    for name in ("refs%2Fpr%2F1", "refs%2Fheads%2Fx", "a..b", "a%00b", "%E2%80%AEx", "a" * 201):
        made = web.post(f"/api/models/{repo}/branch/{name}", json={}, headers=owner)
        assert made.status_code in (400, 404, 405), name
    assert [branch["name"] for branch in web.get(f"/api/models/{repo}/refs").json()["branches"]] == ["main"]


# -- other people's tokens


def test_lfs_address_when_used_for_another_repository_or_content_then_403(
    web: httpx.Client, owner: dict[str, str], attacker: dict[str, str], repo: str
) -> None:
    content = secrets.token_bytes(100)
    href = _lfs(web, owner, repo, content).json()["objects"][0]["actions"]["upload"]["href"]
    assert _lfs(web, attacker, repo, content).status_code == 403
    assert web.put(href.replace(repo, "mallory/own"), content=content).status_code == 403
    assert web.put(href.replace("size=100", "size=101"), content=content + b"x").status_code == 403
    assert web.put(href.replace("until=", "until=9"), content=content).status_code == 403
    assert web.put(href, content=bytes(100)).status_code == 400, "other bytes of that length"
    assert web.put(href, content=content).status_code == 200


def test_content_when_another_repository_has_it_then_a_digest_alone_does_not_get_it(
    web: httpx.Client, owner: dict[str, str], attacker: dict[str, str], repo: str
) -> None:
    """Who knows the SHA-256 of a private file and has not its bytes must not be able to commit it."""
    secret = secrets.token_bytes(100)
    web.put(f"/api/models/{repo}/settings", json={"visibility": "private"}, headers=owner)
    assert _commit(web, owner, repo, [_file("secret", secret)]).status_code == 200
    name = f"own-{secrets.token_hex(4)}"
    web.post("/api/repos/create", json={"name": name, "organization": "mallory"}, headers=attacker)
    line = {
        "path": "stolen",
        "algo": "sha256",
        "oid": hashlib.sha256(secret).hexdigest(),
        "size": len(secret),
    }
    taken = _commit(web, attacker, f"mallory/{name}", [{"key": "lfsFile", "value": line}])
    assert taken.status_code == 400 and "upload it before" in taken.json()["error"]
    answer = _lfs(web, attacker, f"mallory/{name}", secret).json()["objects"][0]
    assert "actions" in answer, "the batch answer would tell that somebody has the file"
    assert web.put(answer["actions"]["upload"]["href"], content=secret).status_code == 200
    assert _commit(web, attacker, f"mallory/{name}", [{"key": "lfsFile", "value": line}]).status_code == 200


@pytest.mark.parametrize(
    ("size", "oid"), [(10, "1" * 64), (11, None), (-1, None), (True, None), ("10", None)]
)
def test_lfs_file_when_it_lies_about_size_or_digest_then_400(
    web: httpx.Client, owner: dict[str, str], repo: str, size: object, oid: str | None
) -> None:
    content = b"0123456789"
    true = hashlib.sha256(content).hexdigest()
    line = {"key": "lfsFile", "value": {"path": "b", "algo": "sha256", "oid": oid or true, "size": size}}
    assert _commit(web, owner, repo, [line]).status_code == 400


# -- conflicts


def test_commit_when_many_insist_on_one_parent_then_one_wins_and_the_others_get_412(
    web: httpx.Client, owner: dict[str, str], repo: str
) -> None:
    head = web.get(f"/api/models/{repo}").json()["sha"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: _commit(web, owner, repo, [_file("race", bytes([n]))], parent=head), range(12))
        )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] + [412] * 11
    winner = next(answer for answer in answers if answer.status_code == 200).json()["commitOid"]
    assert web.get(f"/api/models/{repo}").json()["sha"] == winner
    assert len(web.get(f"/api/models/{repo}/commits/main").json()) == 3


def test_pull_requests_when_opened_at_once_then_each_has_a_number_of_its_own(
    web: httpx.Client, owner: dict[str, str], repo: str
) -> None:
    def open_one(n: int) -> str:
        header = {"key": "header", "value": {"summary": f"no. {n}"}}
        body = "\n".join(map(json.dumps, [header, _file(f"{n}.txt", b"")]))
        sent = web.post(f"/api/models/{repo}/commit/main?create_pr=1", content=body, headers=owner)
        return str(sent.json()["pullRequestUrl"]).rpartition("/")[2]

    with ThreadPoolExecutor(8) as pool:
        assert sorted(map(int, pool.map(open_one, range(8)))) == list(range(1, 9))


# -- ranges


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=0-1,4-5", 200, b"0123456789"),
        ("bytes=0-0," * 500 + "0-0", 200, b"0123456789"),
        ("bytes=5-2", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=a-b", 200, b"0123456789"),
        ("bytes=" + "9" * 5000 + "-", 200, b"0123456789"),
        ("bytes=-0", 416, None),
        ("bytes=10-", 416, None),
        ("bytes=-999", 200, b"0123456789"),
    ],
)
def test_range_when_it_is_odd_then_the_whole_or_416(
    web: httpx.Client, repo: str, asked: str, status: int, content: bytes | None
) -> None:
    got = web.get(f"/{repo}/resolve/main/a.txt", headers={"Range": asked})
    assert got.status_code == status or (status, got.status_code, got.content) == (200, 206, content)
    if content is not None:
        assert got.content == content
    else:
        assert got.headers["content-range"] == "bytes */10"


# -- memory


@pytest.mark.slow
def test_upload_and_download_when_larger_than_the_memory_it_may_take_then_the_server_stays_small(
    start_hub: StartHub, tmp_path: Path
) -> None:
    """256 MiB each through a commit, LFS and back: the server's own memory grows by less than 64 MiB."""
    hub = start_hub(tmp_path / "data")
    headers = {"Authorization": f"Bearer {hub.token('big')}"}
    size = 256 << 20
    block = os.urandom(3 << 20)
    with httpx.Client(base_url=hub.url, timeout=300) as web:
        web.post("/api/repos/create", json={"name": "k", "organization": "big"}, headers=headers)
        assert _commit(web, headers, "big/k", [_file("warm", b"x")]).status_code == 200
        with _Memory(hub.process.pid) as memory:
            sent = web.post(
                "/api/models/big/k/commit/main", content=_big_commit(block, size), headers=headers
            )
            assert sent.status_code == 200, sent.text
            digest = hashlib.sha256()
            pieces = [block] * (size // len(block)) + [bytes(size % len(block)) + b"!"]
            for piece in pieces:
                digest.update(piece)
            entry = {"oid": digest.hexdigest(), "size": sum(map(len, pieces))}
            ask = {"operation": "upload", "objects": [entry]}
            answer = web.post("/big/k.git/info/lfs/objects/batch", json=ask, headers=headers).json()
            assert (
                web.put(answer["objects"][0]["actions"]["upload"]["href"], content=iter(pieces)).status_code
                == 200
            )
            line = {"key": "lfsFile", "value": {"path": "lfs", "algo": "sha256", **entry}}
            assert _commit(web, headers, "big/k", [line]).status_code == 200
            for path, expected in (("regular", None), ("lfs", entry["oid"])):
                got = hashlib.sha256()
                with web.stream("GET", f"/big/k/resolve/main/{path}") as response:
                    for chunk in response.iter_bytes():
                        got.update(chunk)
                assert expected in (None, got.hexdigest())
    assert memory.grown < 64 << 20, f"{memory.grown >> 20} MiB"
    hub.stop()


def _big_commit(block: bytes, size: int) -> Iterator[bytes]:
    yield b'{"key": "header", "value": {"summary": "big"}}\n'
    yield b'{"key": "file", "value": {"content": "'
    encoded = base64.b64encode(block)
    for _ in range(size // len(block)):
        yield encoded
    yield b'", "encoding": "base64", "path": "regular"}}\n'


class _Memory:
    """How much a process's own memory (not its mapped files) grows while this is open, sampled."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._before = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.grown = 0

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _now(self) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("RssAnon:"))
        return int(line.split()[1]) << 10

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            self.grown = max(self.grown, self._now() - self._before)


# -- bodies that are more than they seem


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_body_when_it_says_that_it_is_compressed_then_it_is_taken_as_it_is_and_refused(
    web: httpx.Client, owner: dict[str, str], repo: str, encoding: str
) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    headers = owner | {"Content-Encoding": encoding}
    commit = web.post(f"/api/models/{repo}/commit/main", content=bomb, headers=headers)
    created = web.post("/api/repos/create", content=bomb, headers=headers)
    assert (commit.status_code, created.status_code) == (400, 400)
    upload = _lfs(web, owner, repo, b"what was announced").json()["objects"][0]["actions"]["upload"]
    sent = web.put(upload["href"], content=bomb, headers={**upload.get("header", {}), **headers})
    assert sent.status_code in (400, 413)
    tree = web.get(f"/api/models/{repo}/tree/main").json()
    assert [entry["path"] for entry in tree] == ["a.txt"]
