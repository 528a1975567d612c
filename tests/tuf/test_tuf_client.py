"""What the TUF client believes of honest hubs and of hostile ones, each a real server on loopback."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root
from tuf_hub import TufHub, index_of
from tuf_mirror import Mirror

from hub_loader.config import Config
from hub_loader.errors import DownloadError, OfflineError, SignatureError, UsageError
from hub_loader.manifest import sha256_hex
from hub_loader.trust import tuf_client
from hub_loader.trust.keys import public_of, read_private
from hub_loader.trust.statement import key_id
from hub_loader.trust.tuf_client import add_root, namespace, remove_root, root_of, roots, target

# -- honest hubs


def test_target_of_an_honest_hub_costs_one_request_and_names_digest_and_signer(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    commit = hub.publish(repo, key, index_of(1))
    hub.ceremony("rotate", "snapshot")  # the root given is an old one
    mirror.show(org)
    found = target(reader, repo, 1)
    assert found is not None
    assert (found.sha256, found.length) == (sha256_hex(index_of(1)), len(index_of(1)))
    assert found.key_ids == {key_id(public_of(read_private(key, lambda: "")))}
    assert mirror.requests == [f"/tuf/bundle?namespace={org}&root=1"]
    listed = namespace(reader, org)
    assert listed is not None and listed.targets[f"{repo}/v1/index.json"].commit == commit
    assert target(reader, repo, 2) is None and target(reader, f"{org}/other", 1) is None


def test_hub_that_was_asked_a_moment_ago_is_not_asked_again_and_tuf_is_not_imported(
    hub: TufHub,
    mirror: Mirror,
    reader: Config,
    repo: str,
    org: str,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.publish(repo, key, index_of(1))
    mirror.show(org)
    assert target(replace(reader, refresh=3600.0), repo, 1)
    monkeypatch.setitem(__import__("sys").modules, "tuf", None)
    assert target(replace(reader, refresh=3600.0), repo, 1)
    assert len(mirror.requests) == 1


def test_mirror_without_bundles_is_asked_file_by_file(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    mirror.show(org)
    mirror.missing["/tuf/bundle"] = 404
    assert target(reader, repo, 1)
    assert [path.rpartition("/")[2] for path in mirror.requests][-4:] == [
        "timestamp.json",
        *(next(name for name in mirror.files if role in name) for role in ("snapshot", "targets")),
        f"1.org.{org}.json",
    ]


def test_organization_without_publishers_or_publications_lists_nothing(
    mirror: Mirror, reader: Config, org: str, repo: str, key: Path
) -> None:
    mirror.show(org)
    assert target(reader, repo, 1) is None
    mirror.show("nobody")
    assert target(reader, "nobody/demo", 1) is None


def test_yanked_version_is_evidence_of_why(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    commit = hub.publish(repo, key, index_of(1))
    hub.publisher(org, key).yank(repo, 1, commit, "wrong for odd sizes")
    mirror.show(org)
    found = target(reader, repo, 1)
    assert found is not None and found.yanked == "wrong for odd sizes"
    listed = namespace(reader, org)
    assert listed is not None and listed.versions(repo) == []


def test_hub_without_a_given_root_is_asked_nothing(hub: TufHub, mirror: Mirror, reader: Config) -> None:
    remove_root(mirror.url)
    assert root_of(mirror.url) is None and roots() == []
    assert namespace(reader, "acme") is None and mirror.requests == []


def test_root_that_is_not_signed_as_it_says_is_not_taken(hub: TufHub, tmp_path: Path) -> None:
    root = Metadata[Root].from_bytes(hub.root())
    root.signed.version += 1
    with pytest.raises(SignatureError, match="no root of a TUF repository"):
        add_root("http://127.0.0.1:1", root.to_bytes(), "root.json")
    with pytest.raises(SignatureError, match="no root of a TUF repository"):
        add_root("http://127.0.0.1:1", b"{}", "root.json")


def test_root_that_anybody_may_write_is_not_believed(hub: TufHub, mirror: Mirror, reader: Config) -> None:
    given = root_of(mirror.url)
    assert given is not None
    given.path.chmod(0o666)
    with pytest.raises(UsageError, match="may be written by anybody"):
        namespace(reader, "acme")
    add_root(mirror.url, given.data, "root.json")
    assert root_of(mirror.url) == given


# -- without the hub


def test_offline_enforces_what_was_listed_and_says_how_old_it_is_once_expired(
    hub: TufHub,
    mirror: Mirror,
    reader: Config,
    repo: str,
    org: str,
    key: Path,
    trust_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.publish(repo, key, index_of(1))
    mirror.show(org)
    offline = replace(reader, offline=True)
    with pytest.raises(OfflineError, match="never asked for"):
        target(offline, repo, 1)
    assert target(reader, repo, 1)
    asked = len(mirror.requests)
    with caplog.at_level(logging.WARNING):
        assert target(offline, repo, 1) and caplog.text == ""
        make_older(trust_folder, days=3)
        found = target(offline, repo, 1)
        assert found is not None and found.sha256 == sha256_hex(index_of(1))
        assert "3 days old and has expired" in caplog.text
    assert target(offline, repo, 2) is None and len(mirror.requests) == asked


def test_unreachable_hub_is_replaced_by_what_it_said_until_that_expires(
    hub: TufHub,
    mirror: Mirror,
    reader: Config,
    repo: str,
    org: str,
    key: Path,
    trust_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.publish(repo, key, index_of(1))
    mirror.show(org)
    mirror.missing |= {"/tuf/bundle": 503, "/tuf/metadata/timestamp.json": 503}
    with pytest.raises(DownloadError, match="503"):
        target(reader, repo, 1)
    mirror.missing.clear()
    assert target(reader, repo, 1)
    mirror.missing |= {"/tuf/bundle": 503, "/tuf/metadata/timestamp.json": 503}
    with caplog.at_level(logging.WARNING):
        assert target(reader, repo, 1)
        assert "using what it said" in caplog.text
    make_older(trust_folder, days=3)
    with pytest.raises(SignatureError, match="3 days old and has expired"):
        target(reader, repo, 1)


def test_read_only_trust_folder_still_verifies(
    hub: TufHub,
    mirror: Mirror,
    reader: Config,
    repo: str,
    org: str,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.publish(repo, key, index_of(1))
    mirror.show(org)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tuf_client, "write_file", refuse)  # root, as tests may run, can write anywhere
    assert target(reader, repo, 1) and target(reader, repo, 1)


def make_older(folder: Path, days: float) -> None:
    """Let everything that is remembered have been said and have expired so many days earlier."""
    import json

    for path in folder.glob("trust.tuf/*/namespaces/*.json"):
        data = json.loads(path.read_bytes())
        data["as_of"] -= days * 86400
        data["expires"] = data["as_of"] + 1
        path.write_text(json.dumps(data))
