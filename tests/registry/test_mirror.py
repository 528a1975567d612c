"""A hub that brings what it has not from another: two real registries, and one that lies."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from khub_process import ROOT, Hub, StartHub, khub, khub_environment
from registry_command import run
from signing import sign_package, trust_key

from registry.tree import blob_oid

sys.path.insert(0, str(ROOT / "tests" / "hub_loader"))
from packages import python_package

COMMIT = "c" * 40


@pytest.fixture(scope="module")
def upstream(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A hub with `acme/relu`, signed, in version 1 and with a tag."""
    from huggingface_hub import HfApi

    hub = start_hub(tmp_path_factory.mktemp("upstream") / "data")
    package = python_package(tmp_path_factory.mktemp("package"), name="relu", kernel_id="_relu_mirrored_1")
    sign_package(package.folder, "acme/relu")
    api = HfApi(endpoint=hub.url, token=hub.token("acme"))
    for repo in ("acme/relu", "acme/secret"):
        api.create_repo(repo, repo_type="kernel")
        api.create_branch(repo, branch="v1", repo_type="kernel")
        api.upload_folder(repo_id=repo, repo_type="kernel", folder_path=package.folder, revision="v1")
    api.create_tag("acme/relu", tag="t1", revision="v1", repo_type="kernel")
    return hub


def get(hub: Hub | str, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{hub if isinstance(hub, str) else hub.url}{path}", headers=headers, timeout=60)


@pytest.fixture
def mirror(start_hub: StartHub, upstream: Hub, tmp_path: Path) -> Hub:
    return start_hub(tmp_path / "mirror", "--upstream", upstream.url, "--mirror-deny", "*/secret")


def test_mirror_when_asked_then_it_answers_as_the_upstream_does(upstream: Hub, mirror: Hub) -> None:
    for path in (
        "/api/kernels/acme/relu/refs",
        "/api/kernels/acme/relu/tree/v1?recursive=true",
        "/api/models/acme/relu/tree/t1/build",
        "/kernels/acme/relu/resolve/v1/index.json",
        "/acme/relu/resolve/refs%2Ftags%2Ft1/index.json.dsse",
    ):
        theirs, ours = get(upstream, path), get(mirror, path)
        assert (ours.status_code, ours.content) == (200, theirs.content), path
        assert ours.headers["X-Mirror"] == "fresh" and "X-Mirror" not in theirs.headers
        for header in ("ETag", "X-Repo-Commit", "Content-Length"):
            assert ours.headers.get(header) == theirs.headers.get(header)
    sha = get(upstream, "/api/kernels/acme/relu/revision/v1").json()["sha"]
    assert get(mirror, "/api/kernels/acme/relu/revision/v1").json()["sha"] == sha
    assert get(mirror, f"/kernels/acme/relu/resolve/{sha}/index.json").status_code == 200
    part = get(mirror, "/kernels/acme/relu/resolve/v1/index.json", Range="bytes=3-9")
    assert part.status_code == 206 and len(part.content) == 7
    for absent in (
        "/api/kernels/acme/none",
        "/api/kernels/acme/relu/revision/v9",
        "/api/kernels/acme/secret",
    ):
        assert get(mirror, absent).status_code == 404
    assert get(mirror, "/kernels/acme/relu/resolve/v1/none").headers["X-Error-Code"] == "EntryNotFound"
    assert get(mirror, "/kernels/acme/relu").status_code == 200  # the page
    assert khub("registry", "fsck", "--data", mirror.data).returncode == 0
    assert run(mirror.data, "backup", str(mirror.data.parent / "b.tar"))[0] == 0


def test_mirror_when_asked_in_another_case_then_the_upstreams_spelling_alone_is_copied(mirror: Hub) -> None:
    assert get(mirror, "/api/kernels/ACME/Relu").status_code == 404
    assert get(mirror, "/api/kernels/acme/relu").status_code == 200
    moved = get(mirror, "/api/kernels/ACME/Relu")
    assert (moved.status_code, moved.headers["location"]) == (307, "/api/kernels/acme/relu")


def test_mirror_when_only_heads_are_asked_for_then_no_content_is_fetched(mirror: Hub) -> None:
    found = httpx.head(f"{mirror.url}/kernels/acme/relu/resolve/v1/index.json")
    assert found.status_code == 200 and int(found.headers["Content-Length"]) > 0 and found.headers["ETag"]
    assert blobs(mirror) == set()


def test_mirror_when_written_to_then_refused_with_a_sentence(upstream: Hub, mirror: Hub) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    assert get(mirror, "/api/kernels/acme/relu").status_code in (200, 404)
    get(mirror, "/api/kernels/acme/relu/refs")
    api = HfApi(endpoint=mirror.url, token=mirror.token("acme"))
    for attempt in (
        lambda: api.upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id="acme/relu", repo_type="kernel", revision="v1"
        ),
        lambda: api.create_branch("acme/relu", branch="v2", repo_type="kernel"),
        lambda: api.delete_tag("acme/relu", tag="t1", repo_type="kernel"),
    ):
        with pytest.raises(HfHubHTTPError, match="is a copy of"):
            attempt()
    api.create_repo("acme/own", repo_type="kernel")  # what is made here is this hub's
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="acme/own", repo_type="kernel")
    assert "X-Mirror" not in get(mirror, "/kernels/acme/own/resolve/main/x").headers


@pytest.mark.slow
def test_get_kernel_and_the_stock_client_when_the_upstream_is_gone_then_they_load_what_was_fetched(
    start_hub: StartHub, upstream: Hub, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    relay = start_hub(tmp_path / "relay", "--upstream", upstream.url)
    mirror = start_hub(tmp_path / "mirror", "--upstream", relay.url, "--mirror-ttl", "0")
    trust_key(mirror.url, "acme")

    def load(home: str) -> subprocess.CompletedProcess[str]:
        code = "from hub_loader import get_kernel; print(get_kernel('acme/relu', version=1).__name__)"
        kept = {k: v for k, v in khub_environment().items() if not k.startswith(("HF_", "KERNELS_"))}
        environment = kept | {"HF_ENDPOINT": mirror.url, "HF_HOME": str(tmp_path / home)}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )

    first = load("home")
    assert first.returncode == 0, first.stderr
    options = {"repo_type": "kernel", "revision": "v1", "endpoint": mirror.url}
    snapshot_download("acme/relu", cache_dir=tmp_path / "cache", **options)
    relay.stop()
    second = load("another home")
    assert second.returncode == 0, second.stderr
    folder = Path(snapshot_download("acme/relu", cache_dir=tmp_path / "another cache", **options))
    assert (folder / "index.json").is_file()
    assert get(mirror, "/api/kernels/acme/relu/refs").headers["X-Mirror"].startswith("stale; asked 20")
    never = get(mirror, "/api/kernels/acme/never")
    assert never.status_code == 503 and "upstream" in never.json()["error"]


# -- an upstream that lies


class Liar:
    """A hub with one repository for each test, whose answers that replaces; it keeps the heads of what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.tests = 0
        self.reset()

    def reset(self) -> None:
        self.tests += 1
        self.repo = f"evil/relu{self.tests}"
        self.file = f"/kernels/{self.repo}/resolve/main/x"
        self.content = b"content" * 1000
        self.path = "x"
        self.delay = 0.0
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.lfs = False
        self.private = False

    def count(self, part: str) -> int:
        return sum(part in path for path, _ in self.asked)

    def entry(self) -> dict[str, Any]:
        size = len(self.content)
        lfs = {"oid": hashlib.sha256(self.content).hexdigest(), "size": size, "pointerSize": 130}
        found = {"type": "file", "path": self.path, "size": size, "oid": blob_oid(self.content)}
        return found | ({"lfs": lfs} if self.lfs else {})

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append((handler.path, dict(handler.headers)))
        time.sleep(self.delay)
        for part, special in self.answers.items():
            if part in handler.path:
                return special(handler)
        ref = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
        if self.repo not in handler.path:
            return send(handler, b"{}", 404)
        if "/resolve/" in handler.path:
            return send(handler, self.content)
        if "/tree/" in handler.path:
            return send(handler, json.dumps([self.entry()]).encode())
        if handler.path.endswith("/refs"):
            return send(handler, json.dumps({"branches": [ref], "tags": [], "converts": []}).encode())
        return send(handler, json.dumps({"id": "evil", "sha": COMMIT, "private": self.private}).encode())


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def running() -> Iterator[Liar]:
    liar = Liar()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            liar.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    liar.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield liar
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def lying() -> Iterator[Liar]:
    with running() as found:
        yield found


@pytest.fixture
def liar(lying: Liar) -> Liar:
    lying.reset()
    return lying


@pytest.fixture(scope="module")
def victim(start_hub: StartHub, lying: Liar, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KHUB_UPSTREAM_TOKEN", "for-the-upstream")
        data = tmp_path_factory.mktemp("victim") / "data"
        return start_hub(data, "--upstream", lying.url, "--mirror-ttl", "0")


def blobs(hub: Hub) -> set[str]:
    return {path.name for path in (hub.data / "blobs").iterdir()}


def honest(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"redirected")


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"[" * (1 << 16))
    except OSError:
        pass


def test_mirror_when_the_upstream_is_honest_then_only_its_own_token_reaches_it_and_all_is_fetched_once(
    victim: Hub, liar: Liar
) -> None:
    liar.delay = 0.2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: get(victim, liar.file, Cookie="a=b"), range(8)))
    assert {answer.content for answer in answers} == {liar.content}
    assert liar.count("/resolve/") == 1 and liar.count("/tree/") == 1
    token = victim.token("own")
    assert get(victim, liar.file, Authorization=f"Bearer {token}").content == liar.content
    sent = {name.lower(): value for _, headers in liar.asked for name, value in headers.items()}
    assert {headers["Authorization"] for _, headers in liar.asked} == {"Bearer for-the-upstream"}
    assert "cookie" not in sent and token not in str(liar.asked)


@pytest.mark.parametrize("lfs", [False, True])
@pytest.mark.parametrize("kind", ["other", "short", "long", "endless", "compressed", "failing"])
def test_mirror_when_content_is_not_what_was_listed_then_refused_and_not_kept(
    victim: Hub, liar: Liar, kind: str, lfs: bool
) -> None:
    liar.lfs = lfs
    liar.content = right = kind.encode() * 1000 + bytes([lfs])
    before = blobs(victim)
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
        "other": lambda handler: send(handler, b"C" + right[1:]),
        "short": lambda handler: send(handler, right[:-1]),
        "long": lambda handler: send(handler, right + b"x"),
        "endless": endless,
        "compressed": lambda handler: send(handler, right, Content_Encoding="gzip"),
        "failing": lambda handler: send(handler, b"", 500),
    }
    liar.answers["/resolve/"] = answers[kind]
    refused = get(victim, liar.file)
    assert refused.status_code == 503 and "upstream" in refused.json()["error"]
    assert blobs(victim) == before
    liar.answers.clear()
    assert get(victim, liar.file).content == right


def test_mirror_when_redirected_then_elsewhere_is_not_asked_unless_by_https(victim: Hub, liar: Liar) -> None:
    liar.content = b"redirected"
    with running() as other:
        liar.answers["/resolve/"] = lambda handler: send(
            handler, b"", 302, Location=f"{other.url}{liar.file}"
        )
        assert "another server" in get(victim, liar.file).json()["error"]
        liar.answers["/refs"] = lambda handler: send(handler, b"", 307, Location=f"{other.url}{handler.path}")
        listed = get(victim, f"/api/kernels/{liar.repo}/refs")  # it has what it had
        assert listed.headers["X-Mirror"].startswith("stale") and len(listed.json()["branches"]) == 1
        assert other.asked == []
    liar.answers = {"/resolve/": lambda handler: send(handler, b"", 302, Location=handler.path)}
    assert "without end" in get(victim, liar.file).json()["error"]
    liar.answers = {"/resolve/": lambda handler: send(handler, b"", 302, Location="/moved"), "/moved": honest}
    assert get(victim, liar.file).content == liar.content


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../x"},
        {"path": "/etc/passwd"},
        {"path": "a\\b"},
        {"size": -1},
        {"size": "7"},
        {"oid": "../../x"},
        {"lfs": {"oid": "../../../x", "size": 1}},
        {"lfs": 3},
    ],
    ids=str,
)
def test_mirror_when_a_listing_is_forged_then_refused(
    victim: Hub, liar: Liar, change: dict[str, Any]
) -> None:
    body = json.dumps([liar.entry() | change]).encode()
    liar.answers["/tree/"] = lambda handler: send(handler, body)
    assert get(victim, liar.file).status_code == 503
    liar.answers["/tree/"] = endless
    assert get(victim, liar.file).status_code == 503


def test_mirror_when_the_repository_is_private_upstream_then_strangers_do_not_see_it(
    victim: Hub, liar: Liar
) -> None:
    liar.private = True
    assert get(victim, liar.file).status_code == 404
    member = victim.token("evil", write=False)
    assert get(victim, liar.file, Authorization=f"Bearer {member}").content == liar.content


def test_mirror_when_the_upstream_lists_the_digest_of_a_private_file_then_nobody_gets_that_from_it(
    victim: Hub, liar: Liar
) -> None:
    from huggingface_hub import HfApi

    liar.content, liar.lfs = b"private here" * 10, True
    digest = hashlib.sha256(liar.content).hexdigest()
    api = HfApi(endpoint=victim.url, token=victim.token("own"))
    api.create_repo("own/private", repo_type="kernel", private=True)
    api.upload_file(path_or_fileobj=liar.content, path_in_repo="x", repo_id="own/private", repo_type="kernel")
    liar.answers["/resolve/"] = lambda handler: send(handler, b"unknown to it" * 10)
    assert digest in blobs(victim)
    listed = get(victim, f"/api/kernels/{liar.repo}/tree/main").json()
    assert listed[0]["lfs"]["oid"] == digest
    head = httpx.head(f"{victim.url}{liar.file}")
    assert head.headers["ETag"] == f'"{digest}"' and int(head.headers["Content-Length"]) == 120
    assert get(victim, liar.file).status_code == 503
    liar.answers.clear()  # it has the file after all
    assert get(victim, liar.file).content == liar.content


def test_serve_when_the_upstream_is_no_address_then_refused(tmp_path: Path) -> None:
    for bad in ("ftp://x", "hub.example.com", "https://user:pass@x"):
        done = khub("serve", "--data", tmp_path, "--port", "0", "--upstream", bad)
        assert done.returncode == 2 and "no address of a hub" in done.stderr


@pytest.mark.slow
def test_commands_of_the_mirror_page_run_in_order(start_hub: StartHub, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    page = (ROOT / "docs" / "mirror.md").read_text()
    scripts = re.findall(
        r"<!-- executed by tests/registry/test_mirror.py -->\n```sh\n(.*?)```", page, re.DOTALL
    )
    assert len(scripts) == 2
    hub = start_hub(tmp_path / "hub")
    package = python_package(tmp_path / "package", name="relu", kernel_id="_relu_paged_1")
    command = tmp_path / "khub"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m hub_loader "$@"\n')
    command.chmod(0o755)
    assert khub("keygen", tmp_path / "release.key").returncode == 0
    assert khub("sign", package.folder, "org/relu", "--key", tmp_path / "release.key").returncode == 0
    api = HfApi(endpoint=hub.url, token=hub.token("org"))
    api.create_repo("org/relu", repo_type="kernel")
    api.create_branch("org/relu", branch="v1", repo_type="kernel")
    api.upload_folder(repo_id="org/relu", repo_type="kernel", folder_path=package.folder, revision="v1")
    kept = {k: v for k, v in khub_environment().items() if not k.startswith(("HF_", "KERNELS_"))}
    kept |= {"PATH": f"{tmp_path}:{kept['PATH']}", "HF_HOME": str(tmp_path / "home"), "UPSTREAM": hub.url}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # A loaded machine may take longer to start than the page's three seconds.
    ask = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/healthz')"
    ready = f'until {sys.executable} -c "{ask}" 2>/dev/null; do sleep 0.2; done'
    mirror = scripts[0].replace("8001", str(port)).replace("sleep 3", ready)
    shell = f"trap 'kill $!' EXIT\n{mirror}"
    for script in (shell, scripts[1]):
        done = subprocess.run(
            ["sh", "-ec", script], cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "1 repositories, 2 commits" in done.stdout
