"""What goes over the wire: headers, ranges, tokens, LFS, and answers to what is not there."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Iterator

import httpx
import pytest
from khub_process import Hub, khub

CONTENT = os.urandom(100_000)


@pytest.fixture(scope="module")
def web(hub: Hub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url) as client:
        yield client


@pytest.fixture(scope="module")
def owner(hub: Hub) -> dict[str, str]:
    return {"Authorization": f"Bearer {hub.token('wire')}"}


@pytest.fixture(scope="module")
def repo(web: httpx.Client, owner: dict[str, str]) -> str:
    made = web.post(
        "/api/repos/create", json={"name": "relu", "organization": "wire", "type": "kernel"}, headers=owner
    )
    assert made.status_code == 200
    assert _commit(web, owner, "wire/relu", {"build/x.so": CONTENT, "small.txt": b"small"}).status_code == 200
    return "wire/relu"


_TWIN = {"key": "file", "value": {"path": "\u00e9", "content": ""}}


def _commit(
    web: httpx.Client,
    headers: dict[str, str],
    repo: str,
    files: dict[str, bytes],
    *more: object,
    branch: str = "main",
) -> httpx.Response:
    lines: list[object] = [{"key": "header", "value": {"summary": "test"}}]
    for path, content in files.items():
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    body = "".join(json.dumps(line) + "\n" for line in [*lines, *more])
    return web.post(f"/api/kernels/{repo}/commit/{branch}", content=body, headers=headers)


@pytest.mark.parametrize("path", ["build/x.so", "small.txt"])
@pytest.mark.parametrize("prefix", ["/kernels", ""])
def test_resolve_when_headed_then_the_headers_are_those_of_the_get(
    web: httpx.Client, repo: str, path: str, prefix: str
) -> None:
    url = f"{prefix}/{repo}/resolve/main/{path}"
    head, got = web.head(url), web.get(url)
    assert got.status_code == head.status_code == 200
    kept = ("etag", "content-length", "x-repo-commit", "accept-ranges", "content-type", "content-disposition")
    assert {name: head.headers[name] for name in kept} == {name: got.headers[name] for name in kept}
    oid = hashlib.sha1(f"blob {len(got.content)}\0".encode() + got.content).hexdigest()
    assert got.headers["etag"] == f'"{oid}"'
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["content-length"] == str(len(got.content))
    assert got.headers["x-repo-commit"] == web.get(f"/api/kernels/{repo}").json()["sha"]
    assert "x-xet-hash" not in got.headers


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-9", CONTENT[:10]),
        ("bytes=99990-", CONTENT[99_990:]),
        ("bytes=-5", CONTENT[-5:]),
        ("bytes=70000-200000", CONTENT[70_000:]),
    ],
    ids=["from the start", "to the end", "the last", "past the end"],  # names without the random content
)
def test_resolve_when_a_range_is_asked_then_only_it_comes(
    web: httpx.Client, repo: str, asked: str, expected: bytes
) -> None:
    got = web.get(f"/kernels/{repo}/resolve/main/build/x.so", headers={"Range": asked})
    assert (got.status_code, got.content) == (206, expected)
    assert got.headers["content-range"].endswith("/100000")
    assert got.headers["x-repo-commit"]


@pytest.mark.parametrize("path", ["build/x.so", "small.txt"])
def test_resolve_when_the_range_begins_past_the_end_then_416(web: httpx.Client, repo: str, path: str) -> None:
    got = web.get(f"/kernels/{repo}/resolve/main/{path}", headers={"Range": "bytes=100000-"})
    assert got.status_code == 416
    assert got.headers["content-range"].startswith("bytes */")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/kernels/wire/none", 404, "RepoNotFound"),
        ("/api/kernels/none/relu/refs", 404, "RepoNotFound"),
        ("/api/kernels/wire/relu/tree/v7", 404, "RevisionNotFound"),
        ("/api/kernels/wire/relu/tree/main/none", 404, "EntryNotFound"),
        ("/api/kernels/wire/relu/tree/main/small.txt", 404, "EntryNotFound"),
        ("/kernels/wire/relu/resolve/main/none", 404, "EntryNotFound"),
        ("/kernels/wire/relu/resolve/main/build", 404, "EntryNotFound"),
        ("/kernels/wire/relu/resolve/main/..%2F..%2Fregistry.sqlite", 400, "BadRequest"),
        ("/kernels/wire/relu/resolve/main/%FF", 400, "BadRequest"),
        ("/api/kernels/wire/relu/lfs-files", 501, "NotImplemented"),
        ("/api/models/gpt2", 404, "RepoNotFound"),
        ("/gpt2/resolve/main/config.json", 404, "RepoNotFound"),
        ("/api/kernels/wire/re%00lu", 400, "BadRequest"),
        ("/api/kernels/wire/relu/tree/main?cursor=%00", 400, "BadRequest"),
        ("/api/spaces", 501, "NotImplemented"),
        ("/nowhere", 404, None),
    ],
)
def test_get_when_it_cannot_be_answered_then_code_and_sentence_say_why(
    web: httpx.Client, repo: str, path: str, status: int, code: str | None
) -> None:
    got = web.get(path)
    assert (got.status_code, got.headers.get("x-error-code")) == (status, code)
    assert got.json()["error"] == got.headers["x-error-message"]
    if status == 501:
        assert f"GET {path}" in got.json()["error"]


def test_tree_when_paged_then_the_links_lead_through_every_entry(web: httpx.Client, repo: str) -> None:
    paths, url = [], f"/api/models/{repo}/tree/main?recursive=true&limit=1&expand=true&unknown=ignored"
    while url:
        page = web.get(url)
        paths += [entry["path"] for entry in page.json()]
        url = page.links.get("next", {}).get("url", "")
    assert paths == ["build", "build/x.so", "small.txt"]


def test_write_when_the_token_does_not_allow_it_then_401_or_403_with_a_sentence(
    web: httpx.Client, hub: Hub, repo: str
) -> None:
    before = web.get(f"/api/kernels/{repo}").json()["sha"]

    def attempt(token: str | None) -> tuple[int, set[str]]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answers = [
            _commit(web, headers, repo, {"x": b"x"}),
            web.post(f"/api/kernels/{repo}/branch/stolen", headers=headers, json={}),
            web.delete(f"/api/kernels/{repo}/branch/main", headers=headers),
            web.post(f"/api/kernels/{repo}/tag/main", headers=headers, json={"tag": "t"}),
            web.post(f"/api/kernels/{repo}/preupload/main", headers=headers, json={"files": []}),
            web.post(
                f"/kernels/{repo}.git/info/lfs/objects/batch",
                headers=headers,
                json={"operation": "upload", "objects": []},
            ),
            web.request(
                "DELETE", "/api/repos/delete", headers=headers, json={"name": "relu", "organization": "wire"}
            ),
            web.post("/api/repos/create", headers=headers, json={"name": "new", "organization": "wire"}),
        ]
        (status,) = {answer.status_code for answer in answers}
        return status, {answer.json()["error"] for answer in answers}

    for token, expected, words in (
        (None, 401, "needs a token"),
        ("hf_from_somewhere_else", 401, "not known"),
        (hub.token("another"), 403, "'another'"),
        (hub.token("wire", write=False), 403, "--write"),
    ):
        status, sentences = attempt(token)
        assert status == expected and all(words in sentence for sentence in sentences)
    assert web.get(f"/api/kernels/{repo}").json()["sha"] == before


def test_read_when_the_token_is_of_another_hub_then_it_is_ignored(web: httpx.Client, repo: str) -> None:
    got = web.get(f"/api/kernels/{repo}", headers={"Authorization": "Bearer hf_from_somewhere_else"})
    assert got.status_code == 200
    assert web.get("/api/whoami-v2").status_code == 401


def test_token_when_revoked_then_it_stops_working_while_the_server_runs(web: httpx.Client, hub: Hub) -> None:
    token = hub.token("fickle")
    headers = {"Authorization": f"Bearer {token}"}
    assert web.get("/api/whoami-v2", headers=headers).json()["name"] == "fickle"
    listed = json.loads(khub("registry", "token", "list", "--data", hub.data, "--json").stdout)
    mine = next(row for row in listed if row["org"] == "fickle")
    assert token.startswith(mine["hint"]) and token not in json.dumps(listed)
    assert khub("registry", "token", "revoke", "--data", hub.data, str(mine["id"])).returncode == 0
    assert web.get("/api/whoami-v2", headers=headers).status_code == 401
    again = khub("registry", "token", "revoke", "--data", hub.data, str(mine["id"]))
    assert again.returncode == 2 and "token list" in again.stderr


def test_token_when_stored_then_only_its_hash_is_on_the_disk(hub: Hub) -> None:
    token = hub.token("hashed").encode()
    assert not any(token in path.read_bytes() for path in hub.data.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([{"key": "file", "value": {"path": "../x", "content": ""}}], "no '..'"),
        (
            [{"key": "file", "value": {"path": "x", "content": "%", "encoding": "base64"}}],
            "not valid 'base64'",
        ),
        ([{"key": "file", "value": {"path": "x", "content": None}}], "not valid"),
        ([{"key": "file", "value": {"path": "small.txt/x", "content": ""}}], "would be a file and"),
        ([{"key": "lfsFile", "value": {"path": "x", "oid": "0" * 64, "size": 1}}], "upload it before"),
        ([{"key": "lfsFile", "value": {"path": "x", "oid": "../../x", "size": 1}}], "not a SHA-256"),
        ([{"key": "rename", "value": {}}], "no operation 'rename'"),
        ([{"key": "header", "value": {"summary": ""}}], "summary"),
        ([{"key": "header", "value": {"summary": "a\0b"}}], "NUL"),
        ([{"key": "header", "value": {"summary": "\ud800"}}], "surrogate"),
        ([{"key": "file", "value": {"path": "e\u0301", "content": ""}}, _TWIN], "the same name"),
        ([{"key": "file", "value": {"path": "x\u202etxt.exe", "content": ""}}], "control character"),
        ([{"key": "file", "value": {"path": "a\0b", "content": ""}}], "control character"),
        ([{"key": "file", "value": {"path": "x", "a": {"content": "QUJD"}, "content": "QUJE"}}], "twice"),
        ([{"key": "deletedFolder", "value": {"path": "../.."}}], "no '..'"),
        ([["not", "an", "object"]], "JSON objects"),
    ],
)
def test_commit_when_a_line_is_wrong_then_400_says_which_and_nothing_changes(
    web: httpx.Client, owner: dict[str, str], repo: str, lines: list[object], sentence: str
) -> None:
    before = web.get(f"/api/kernels/{repo}").json()["sha"]
    refused = _commit(web, owner, repo, {"good.txt": b"good"}, *lines)
    assert refused.status_code == 400 and sentence in refused.json()["error"]
    assert web.get(f"/api/kernels/{repo}").json()["sha"] == before


def test_commit_when_it_has_no_operation_then_it_is_an_empty_commit_as_on_the_hub(
    web: httpx.Client, owner: dict[str, str], repo: str
) -> None:
    before = web.get(f"/api/kernels/{repo}/tree/main").json()
    made = _commit(web, owner, repo, {})
    assert made.json()["commitOid"] == web.get(f"/api/kernels/{repo}").json()["sha"]
    assert web.get(f"/api/kernels/{repo}/tree/main").json() == before


def test_lfs_when_uploaded_by_batch_put_and_verify_then_the_commit_links_it(
    web: httpx.Client, owner: dict[str, str], repo: str
) -> None:
    content = os.urandom(200_000)
    entry = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    url = f"/kernels/{repo}.git/info/lfs/objects/batch"
    ask = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [entry],
        "hash_algo": "sha256",
    }
    answer = web.post(url, json=ask, headers=owner).json()
    assert answer["transfer"] == "basic"
    actions = answer["objects"][0]["actions"]

    assert web.put(actions["upload"]["href"], content=content[:-1]).status_code == 400
    assert web.put(actions["upload"]["href"] + "0", content=content).status_code == 403
    assert web.post(actions["verify"]["href"], json=entry, headers=owner).status_code == 404
    assert web.put(actions["upload"]["href"], content=content).status_code == 200
    assert web.post(actions["verify"]["href"], json=entry, headers=owner).status_code == 200
    assert "actions" not in web.post(url, json=ask, headers=owner).json()["objects"][0]

    line = {"key": "lfsFile", "value": {"path": "lfs.so", "algo": "sha256", **entry}}
    assert _commit(web, owner, repo, {}, line).status_code == 200
    head = web.head(f"/kernels/{repo}/resolve/main/lfs.so")
    assert head.headers["x-linked-etag"] == head.headers["etag"] == f'"{entry["oid"]}"'
    assert head.headers["x-linked-size"] == str(len(content))
    assert web.get(f"/kernels/{repo}/resolve/main/lfs.so").content == content
    listed = {e["path"]: e for e in web.get(f"/api/kernels/{repo}/tree/main").json()}["lfs.so"]
    assert listed["lfs"] == {**entry, "pointerSize": 131}
    assert (
        _commit(web, owner, repo, {}, {"key": "deletedFile", "value": {"path": "lfs.so"}}).status_code == 200
    )


def test_commit_when_two_writers_race_then_both_files_are_there(
    hub: Hub, web: httpx.Client, owner: dict[str, str]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    name = f"race-{secrets.token_hex(4)}"
    web.post(
        "/api/repos/create", json={"name": name, "organization": "wire", "type": "kernel"}, headers=owner
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: _commit(web, owner, f"wire/{name}", {f"{n}.txt": b"x"}), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    listed = web.get(f"/api/kernels/wire/{name}/tree/main").json()
    assert {entry["path"] for entry in listed} == {f"{n}.txt" for n in range(16)}


def test_fixed_answers_when_asked_then_they_are_what_clients_expect(web: httpx.Client) -> None:
    assert web.get("/healthz").text == "ok"
    assert web.get("/api/agent-harnesses").json() == {"standardEnvVars": [], "harnesses": {}}
    answer = web.post("/api/validate-yaml", json={"content": "---\n", "repoType": "kernel"})
    assert answer.json() == {"errors": [], "warnings": []}
