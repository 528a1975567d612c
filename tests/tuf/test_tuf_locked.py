"""Locked loads and TUF: no request, and what this machine knows of a yank or a revocation holds all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from packages import python_package
from test_tuf_get_kernel import forget_process, publish
from tuf_hub import TufHub
from tuf_mirror import Mirror, mirror_of

from hub_loader import get_kernel, get_locked_kernel, load_kernel
from hub_loader.cli import main
from hub_loader.errors import SignatureError
from hub_loader.trust.tuf_client import add_root, root_of
from hub_loader.trust.tuf_record import read_namespace


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH", "LOCAL_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    new_process(monkeypatch)


@pytest.fixture
def mirror(
    hub: TufHub, repo: str, org: str, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mirror]:
    """What readers ask, with version 1 of the repository, which the project has locked and synchronized."""
    with mirror_of(hub.url) as mirror:
        add_root(mirror.url, hub.root(), "root.json")
        publish(hub, repo, key, python_package(tmp_path / "one", value=1))
        mirror.show(org)
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        Path("pyproject.toml").write_text(f'[tool.kernels.dependencies]\n"{repo}" = 1\n')
        assert main(["lock"]) == 0 and main(["sync"]) == 0
        mirror.requests.clear()
        yield mirror


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows."""
    forget_process(monkeypatch)
    monkeypatch.setattr("hub_loader.locked._modules", {})


def ask(mirror: Mirror, org: str, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this machine hear what the hub says now, as any load without the lock does."""
    mirror.show(org)
    monkeypatch.setenv("KHUB_REFRESH", "0")
    with pytest.raises(SignatureError):
        get_kernel(repo, version=1)
    mirror.requests.clear()
    new_process(monkeypatch)


def both(repo: str) -> list[object]:
    return [
        get_locked_kernel(repo, lockfile="kernels.lock").value(),
        load_kernel(repo, lockfile="kernels.lock").value(),
    ]


def test_locked_load_when_a_yank_was_heard_of_then_refused_with_its_reason_and_no_request(
    hub: TufHub, mirror: Mirror, repo: str, org: str, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert both(repo) == [1, 1] and mirror.requests == []
    lock = json.loads(Path("kernels.lock").read_bytes())[0]["lock"]
    hub.publisher(org, key).yank(repo, 1, lock["commit"], "wrong for odd sizes")
    new_process(monkeypatch)
    assert both(repo) == [1, 1]  # nobody has told this machine
    ask(mirror, org, repo, monkeypatch)
    for load in (get_locked_kernel, load_kernel):
        with pytest.raises(SignatureError, match=r"wrong for odd sizes.*khub lock"):
            load(repo, lockfile="kernels.lock")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SignatureError, match="wrong for odd sizes"):
        get_locked_kernel(repo, lockfile="kernels.lock")
    monkeypatch.setenv(
        "HF_ENDPOINT", "http://127.0.0.1:9"
    )  # the same bytes, from a cache that another hub filled
    with pytest.raises(SignatureError, match="wrong for odd sizes"):
        load_kernel(repo, lockfile="kernels.lock")
    assert mirror.requests == []


def test_locked_load_when_its_publishers_key_was_revoked_and_that_was_heard_of_then_refused(
    hub: TufHub, mirror: Mirror, repo: str, org: str, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.ceremony("revoke", f"{key}.pub")
    assert both(repo) == [1, 1]
    new_process(monkeypatch)
    ask(mirror, org, repo, monkeypatch)
    for load in (get_locked_kernel, load_kernel):
        with pytest.raises(SignatureError, match="no key may publish for"):
            load(repo, lockfile="kernels.lock")
    assert mirror.requests == []


def test_locked_load_when_the_metadata_has_expired_or_names_a_newer_index_then_loads(
    hub: TufHub,
    mirror: Mirror,
    repo: str,
    org: str,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(hub, repo, key, python_package(tmp_path / "two", value=2))
    mirror.show(org)
    monkeypatch.setenv("KHUB_REFRESH", "0")
    assert get_kernel(repo, version=1).value() == 2
    given = root_of(mirror.url)
    assert given is not None
    path = given.path.parent / "namespaces" / f"{org}.json"
    known = read_namespace(path)
    assert known is not None
    path.write_bytes(replace(known, expires=1.0).to_json())
    mirror.requests.clear()
    new_process(monkeypatch)
    assert both(repo) == [1, 1] and mirror.requests == []
