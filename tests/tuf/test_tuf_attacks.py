"""Hubs and mirrors that lie to the TUF client, each a real server on loopback: none is believed."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from khub_process import StartHub
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Timestamp
from tuf_hub import TufHub, index_of, new_key
from tuf_mirror import Mirror, mirror_of, state

from hub_loader.config import Config
from hub_loader.errors import DownloadError, SignatureError
from hub_loader.trust.keys import read_private
from hub_loader.trust.tuf_client import add_root, namespace, target
from hub_loader.trust.tuf_keys import signer_of
from registry.tuf.keys import OnlineKeys


def online(hub: TufHub, role: str) -> Signer:
    root = Metadata[Root].from_bytes(hub.root()).signed
    return OnlineKeys(hub.hub.data).signer(role, root.roles[role].keyids)


def replace_role(files: dict[str, bytes], role: str, metadata: Metadata[Any], signer: Signer) -> bytes:
    """Put a forged role in the place of the current one."""
    metadata.signatures.clear()
    metadata.sign(signer)
    old = next(name for name in files if name.endswith(f"{role}.json"))
    del files[old]
    name = f"{role}.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
    files[name] = metadata.to_bytes()
    return files[name]


def current(files: dict[str, bytes], role: str) -> Metadata[Any]:
    return Metadata[Any].from_bytes(
        next(data for name, data in files.items() if name.endswith(f"{role}.json"))
    )


def test_older_state_than_was_seen_is_refused(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    old = dict(mirror.show(org))
    hub.publish(repo, key, index_of(1, "newer"))
    mirror.show(org)
    assert target(reader, repo, 1)
    mirror.files = old
    with pytest.raises(SignatureError, match="BadVersionNumberError"):
        target(reader, repo, 1)


@pytest.mark.slow
def test_frozen_state_is_refused_once_its_timestamp_has_expired(
    start_hub: StartHub, tmp_path: Path, org: str, repo: str
) -> None:
    hub = TufHub(start_hub(tmp_path / "data"), tmp_path)
    hub.found("--timestamp-days", 8 / 86400)
    key = new_key(tmp_path, "publisher")
    hub.delegate(org, key)
    hub.publish(repo, key, index_of(1))
    with mirror_of(hub.url) as mirror:
        add_root(mirror.url, hub.root(), "root.json")
        reader = replace(hub.config(url=mirror.url), refresh=3600.0)
        hub.trust("refresh", "--force")
        mirror.show(org)
        assert target(reader, repo, 1)
        expires = current(mirror.files, "timestamp").signed.expires
        while time.time() <= expires.timestamp() + 1:
            time.sleep(0.1)
        with pytest.raises(SignatureError, match="timestamp.json is expired"):
            target(reader, repo, 1)


@pytest.mark.parametrize("stale", ["snapshot", "role"])
def test_files_of_different_states_are_refused(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path, stale: str
) -> None:
    hub.publish(repo, key, index_of(1))
    old = dict(mirror.show(org))
    hub.publish(repo, key, index_of(1, "newer"))
    new = mirror.show(org)
    part = "snapshot" if stale == "snapshot" else f"org.{org}"
    name = next(name for name in new if part in name)
    new[name] = next(data for other, data in old.items() if part in other)
    with pytest.raises(SignatureError, match="LengthOrHashMismatchError"):
        target(reader, repo, 1)


def test_bundle_without_end_is_refused(mirror: Mirror, reader: Config, repo: str) -> None:
    mirror.endless.add("/tuf/bundle")
    with pytest.raises(DownloadError, match="the hub sends more"):
        target(reader, repo, 1)


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json", "snapshot"])
def test_metadata_without_end_is_refused(
    mirror: Mirror, reader: Config, repo: str, org: str, name: str
) -> None:
    mirror.show(org)
    mirror.missing["/tuf/bundle"] = 404
    found = name if name.endswith(".json") else next(each for each in mirror.files if name in each)
    mirror.endless.add(f"/tuf/metadata/{found}")
    with pytest.raises(SignatureError, match="more TUF metadata than is signed"):
        target(reader, repo, 1)


def test_snapshot_forged_with_a_stolen_snapshot_key_is_refused(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    files = mirror.show(org)
    snapshot = current(files, "snapshot")
    snapshot.signed.meta[f"org.{org}.json"] = MetaFile(7)
    replace_role(files, "snapshot", snapshot, online(hub, "snapshot"))
    with pytest.raises(SignatureError, match="LengthOrHashMismatchError"):
        target(reader, repo, 1)


def test_targets_forged_with_both_stolen_online_keys_are_refused(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path, tmp_path: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    files = mirror.show(org)
    role = current(files, f"org.{org}")
    role.signed.version += 1
    role.signed.targets[f"{repo}/v1/index.json"].hashes = {"sha256": "0" * 64}
    thief = signer_of(read_private(new_key(tmp_path, "thief"), lambda: ""))
    data = replace_role(files, f"org.{org}", role, thief)
    snapshot: Metadata[Snapshot] = current(files, "snapshot")
    snapshot.signed.version += 1
    snapshot.signed.meta[f"org.{org}.json"] = MetaFile.from_data(role.signed.version, data, ["sha256"])
    data = replace_role(files, "snapshot", snapshot, online(hub, "snapshot"))
    timestamp: Metadata[Timestamp] = current(files, "timestamp")
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    replace_role(files, "timestamp", timestamp, online(hub, "timestamp"))
    with pytest.raises(SignatureError, match="no key that the hub's TUF metadata allows"):
        target(reader, repo, 1)


def test_role_rolled_back_with_both_stolen_online_keys_is_refused(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    old = current(dict(mirror.show(org)), f"org.{org}")
    hub.publish(repo, key, index_of(1, "newer"))
    files = mirror.show(org)
    assert target(reader, repo, 1)
    name = next(name for name in files if f"org.{org}" in name)
    del files[name]
    files[f"1.org.{org}.json"] = old.to_bytes()
    snapshot: Metadata[Snapshot] = current(files, "snapshot")
    snapshot.signed.version += 1
    snapshot.signed.meta[f"org.{org}.json"] = MetaFile(1)
    replace_role(files, "snapshot", snapshot, online(hub, "snapshot"))
    timestamp: Metadata[Timestamp] = current(files, "timestamp")
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
    replace_role(files, "timestamp", timestamp, online(hub, "timestamp"))
    with pytest.raises(SignatureError, match="BadVersionNumberError"):
        target(reader, repo, 1)


def test_snapshot_key_that_was_rotated_away_signs_nothing_any_more(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    stolen, files = online(hub, "timestamp"), dict(mirror.show(org))
    hub.ceremony("rotate", "timestamp")
    new_roots = {name: data for name, data in state(hub.url, org).items() if name.endswith("root.json")}
    timestamp: Metadata[Timestamp] = current(files, "timestamp")
    timestamp.signed.version += 100
    timestamp.signed.expires += timedelta(days=30)
    replace_role(files, "timestamp", timestamp, stolen)
    mirror.files = {**files, **new_roots}
    with pytest.raises(SignatureError, match="UnsignedMetadataError"):
        target(reader, repo, 1)
    mirror.show(org)
    assert target(reader, repo, 1)


def test_root_signed_by_the_mirror_itself_is_refused(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, tmp_path: Path
) -> None:
    mirror.show(org)
    thief = signer_of(read_private(new_key(tmp_path, "thief"), lambda: ""))
    last = max(int(name.partition(".")[0]) for name in mirror.files if name.endswith("root.json"))
    root = Metadata[Root].from_bytes(mirror.files[f"{last}.root.json"])
    root.signed.version += 1
    root.signed.add_key(thief.public_key, "root")
    root.signed.roles["root"].threshold = 1
    root.signatures.clear()
    root.sign(thief)
    mirror.files[f"{last + 1}.root.json"] = root.to_bytes()
    with pytest.raises(SignatureError, match="UnsignedMetadataError"):
        target(reader, repo, 1)


def test_revoked_publisher_key_is_refused_also_offline_until_another_signs(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path, tmp_path: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    mirror.show(org)
    assert target(reader, repo, 1)
    second = new_key(tmp_path, "second")
    hub.delegate(org, key, second)
    hub.ceremony("revoke", f"{key}.pub")
    mirror.show(org)
    with pytest.raises(SignatureError, match="no key that the hub's TUF metadata allows"):
        target(reader, repo, 1)
    with pytest.raises(SignatureError, match="no key that the hub's TUF metadata allows"):
        target(replace(reader, offline=True), repo, 1)
    hub.publisher(org, second).change(lambda targets: None, anew=True, unverified=True)
    mirror.show(org)
    assert target(reader, repo, 1)


def test_mirror_that_hides_the_metadata_is_refused(mirror: Mirror, reader: Config, repo: str) -> None:
    mirror.missing |= {"/tuf/bundle": 404}
    with pytest.raises(SignatureError, match="does not show the TUF metadata"):
        target(reader, repo, 1)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"files": [1]}', b'{"files": {"timestamp.json": 1}}'])
def test_bundle_that_is_none_is_refused(mirror: Mirror, reader: Config, repo: str, body: bytes) -> None:
    mirror.bodies["/tuf/bundle"] = body
    with pytest.raises(DownloadError, match="did not answer like a hub"):
        target(reader, repo, 1)


def test_target_outside_the_organization_is_not_believed_of_it(
    hub: TufHub, mirror: Mirror, reader: Config, repo: str, org: str, key: Path
) -> None:
    """The registry refuses such an upload; a stolen registry might not."""
    hub.publish(repo, key, index_of(1))
    files = mirror.show(org)
    role = current(files, f"org.{org}")
    role.signed.targets["other/demo/v1/index.json"] = role.signed.targets[f"{repo}/v1/index.json"]
    data = replace_role(files, f"org.{org}", role, signer_of(read_private(key, lambda: "")))
    snapshot: Metadata[Snapshot] = current(files, "snapshot")
    snapshot.signed.meta[f"org.{org}.json"] = MetaFile.from_data(role.signed.version, data, ["sha256"])
    data = replace_role(files, "snapshot", snapshot, online(hub, "snapshot"))
    timestamp: Metadata[Timestamp] = current(files, "timestamp")
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    replace_role(files, "timestamp", timestamp, online(hub, "timestamp"))
    found = namespace(reader, org)
    assert found is not None and set(found.targets) == {f"{repo}/v1/index.json"}
