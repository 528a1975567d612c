"""get_kernel on a hub whose TUF root was given: what is listed loads, nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from khub_process import khub
from packages import Package, python_package
from signing import sign_package
from tuf_hub import TufHub, new_key
from tuf_mirror import Mirror, mirror_of

from build_matrix.publish import read_package
from hub_loader import get_kernel
from hub_loader.cli import main
from hub_loader.errors import OfflineError, PolicyError, SignatureError
from hub_loader.kernels import install_kernel
from hub_loader.manifest import parse_index
from hub_loader.trust.keys import read_private
from hub_loader.trust.tuf_client import add_root, root_of


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH", "LOCAL_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    forget_process(monkeypatch)


def forget_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows of hubs."""
    monkeypatch.setattr("hub_loader.entry._modules", {})
    monkeypatch.setattr("hub_loader.pinned._versions", {})


@pytest.fixture
def mirror(hub: TufHub, org: str, key: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """What readers ask; they were given the root."""
    with mirror_of(hub.url) as mirror:
        add_root(mirror.url, hub.root(), "root.json")
        mirror.show(org)
        monkeypatch.setenv("HF_ENDPOINT", mirror.url)
        yield mirror


def publish(hub: TufHub, repo: str, key: Path, package: Package, version: int = 1) -> str:
    """Upload a package, signed, and list it; returns the commit."""
    commit = upload(hub, repo, key, package, version)
    index = (package.folder / "index.json").read_bytes()
    assert hub.publisher(repo.partition("/")[0], key).publish(repo, version, commit, index)
    return commit


def upload(hub: TufHub, repo: str, key: Path, package: Package, version: int = 1) -> str:
    index = (package.folder / "index.json").read_bytes()
    envelope = sign_package(package.folder, repo, read_private(key, lambda: ""))
    files = read_package(package.folder, parse_index(index, origin="index.json"))
    return hub.commit(repo, version, files | {envelope.name: envelope.read_bytes()})


def test_listed_kernel_loads_with_one_request_for_trust_and_again_with_none(
    hub: TufHub,
    mirror: Mirror,
    repo: str,
    org: str,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = python_package(tmp_path / "package", value=11)
    commit = publish(hub, repo, key, package)
    mirror.show(org)
    assert get_kernel(repo, version=1).value() == 11
    variant = [path for path in mirror.requests if "/build/" in path]
    others = [path for path in mirror.requests if "/build/" not in path]
    assert len(variant) == 5
    assert sorted(others) == [
        f"/kernels/{repo}/resolve/{commit}/index.json",
        f"/kernels/{repo}/resolve/{commit}/index.json.dsse",
        f"/tuf/bundle?namespace={org}&root=1",
    ]
    mirror.requests.clear()
    forget_process(monkeypatch)
    assert get_kernel(repo, version=1).value() == 11 and get_kernel(repo).value() == 11
    assert mirror.requests == []


def test_kernel_that_is_not_listed_is_refused_whatever_the_caller_allows(
    hub: TufHub, mirror: Mirror, repo: str, key: Path, tmp_path: Path
) -> None:
    upload(hub, repo, key, python_package(tmp_path / "package"))
    for allowed in (None, True, [repo]):
        with pytest.raises(SignatureError, match="TUF metadata does not list it"):
            get_kernel(repo, version=1, trust_remote_code=allowed)
    assert not any("/build/" in path for path in mirror.requests)


def test_commit_that_is_not_listed_yet_waits_behind_the_one_that_is(
    hub: TufHub, mirror: Mirror, repo: str, org: str, key: Path, tmp_path: Path
) -> None:
    publish(hub, repo, key, python_package(tmp_path / "one", value=1))
    newer = upload(hub, repo, key, python_package(tmp_path / "two", value=2))
    mirror.show(org)
    assert get_kernel(repo, version=1).value() == 1
    with pytest.raises(SignatureError, match="is not the one that"):
        get_kernel(repo, revision=newer)


def test_newest_version_is_the_highest_that_is_listed_and_not_taken_back(
    hub: TufHub,
    mirror: Mirror,
    repo: str,
    org: str,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(hub, repo, key, python_package(tmp_path / "one", value=1))
    second = publish(hub, repo, key, python_package(tmp_path / "two", value=2, version=2), version=2)
    upload(hub, repo, key, python_package(tmp_path / "three", value=3, version=3), version=3)
    mirror.show(org)
    assert get_kernel(repo).value() == 2
    hub.publisher(org, key).yank(repo, 2, second, "wrong for odd sizes")
    mirror.show(org)
    forget_process(monkeypatch)
    monkeypatch.setenv("KHUB_REFRESH", "0")
    assert get_kernel(repo).value() == 1
    with pytest.raises(SignatureError, match="wrong for odd sizes"):
        get_kernel(repo, version=2, trust_remote_code=True)


def test_index_that_the_mirror_has_changed_is_refused(
    hub: TufHub, mirror: Mirror, repo: str, org: str, key: Path, tmp_path: Path
) -> None:
    package = python_package(tmp_path / "package")
    commit = publish(hub, repo, key, package)
    mirror.show(org)
    index = json.loads((package.folder / "index.json").read_bytes())
    mirror.bodies[f"/kernels/{repo}/resolve/{commit}/index.json"] = json.dumps(index, indent=9).encode()
    with pytest.raises(SignatureError, match="is not the one that"):
        get_kernel(repo, version=1, trust_remote_code=True)


def test_offline_loads_what_was_listed_and_refuses_what_was_not(
    hub: TufHub,
    mirror: Mirror,
    repo: str,
    org: str,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(hub, repo, key, python_package(tmp_path / "one", value=1))
    mirror.show(org)
    install_kernel(repo, version=1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget_process(monkeypatch)
    mirror.requests.clear()
    assert get_kernel(repo, version=1).value() == 1
    with pytest.raises((OfflineError, PolicyError)):
        get_kernel(repo, version=2)
    assert mirror.requests == []


def test_publisher_key_that_is_revoked_stops_its_kernels_within_a_refresh(
    hub: TufHub,
    mirror: Mirror,
    repo: str,
    org: str,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(hub, repo, key, python_package(tmp_path / "one", value=1))
    mirror.show(org)
    assert get_kernel(repo, version=1).value() == 1
    hub.ceremony("revoke", f"{key}.pub")
    mirror.show(org)
    forget_process(monkeypatch)
    monkeypatch.setenv("KHUB_REFRESH", "0")
    with pytest.raises(SignatureError):
        get_kernel(repo, version=1, trust_remote_code=True)


@pytest.mark.slow
def test_commands_give_a_root_publish_to_a_hub_that_has_one_and_take_back(
    hub: TufHub, repo: str, org: str, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = python_package(tmp_path / "package", value=5).folder
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_TOKEN", hub.token(org))):
        monkeypatch.setenv(name, value)
    refused = khub("publish", package, repo, "--sign-key", key)
    assert refused.returncode == 2 and "khub trust add --hub" in refused.stderr
    root = tmp_path / "root.json"
    root.write_bytes(hub.root())
    assert "what it does not list is refused" in khub("trust", "add", "--root", root).stdout
    assert hub.url in khub("trust", "list").stdout
    stranger = new_key(tmp_path, "stranger")
    refused = khub("publish", package, repo, "--sign-key", stranger)
    assert refused.returncode == 17 and "does not let the key" in refused.stderr
    done = khub("publish", package, repo, "--sign-key", key)
    assert done.returncode == 0 and "in version 1 of the TUF targets" in done.stdout, done.stderr
    assert "no change" in khub("publish", package, repo, "--sign-key", key).stdout
    assert get_kernel(repo, version=1).value() == 5
    assert khub("trust", "remove", "--root").returncode == 0
    assert root_of(hub.url) is None


def test_resign_extends_and_takes_over(
    hub: TufHub,
    repo: str,
    org: str,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import argparse

    from build_matrix.resign import add_resign

    publish(hub, repo, key, python_package(tmp_path / "one"))
    for name, value in (("HF_ENDPOINT", hub.url), ("HF_TOKEN", hub.token(org))):
        monkeypatch.setenv(name, value)

    def resign(*arguments: object) -> dict[str, object]:
        parser = argparse.ArgumentParser()
        add_resign(parser)
        args = parser.parse_args([org, "--json", *map(str, arguments)])
        capsys.readouterr()
        assert args.run(args) == 0
        return dict(json.loads(capsys.readouterr().out))

    assert resign("--sign-key", key)["version"] == 2
    second = new_key(tmp_path, "second")
    hub.delegate(org, second)
    with pytest.raises(SignatureError, match="look through it"):
        resign("--sign-key", second)
    shown = resign("--sign-key", second, "--unverified", "--dry-run")
    assert list(shown["targets"]) == [f"{repo}/v1/index.json"] and shown["version"] is None
    assert resign("--sign-key", second, "--unverified")["version"] == 3
    without = resign("--sign-key", second, "--without", f"{repo}/v1/index.json")
    assert (without["targets"], without["version"]) == ({}, 4)
    assert main(["trust", "remove", "--root"]) == 0
