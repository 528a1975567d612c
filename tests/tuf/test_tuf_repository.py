"""The registry as a TUF repository, as python-tuf's own client and publishers see it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import pytest
from khub_process import StartHub, khub
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import Updater
from tuf_hub import TufHub, index_of, new_key, signed

from hub_loader.errors import AuthenticationError, SignatureError
from hub_loader.manifest import sha256_hex
from hub_loader.trust.keys import read_private
from hub_loader.trust.tuf_keys import signer_of


def stock_updater(hub: TufHub, folder: Path, root: bytes) -> Updater:
    for name in ("metadata", "targets"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Updater(
        str(folder / "metadata"),
        f"{hub.url}/tuf/metadata/",
        str(folder / "targets"),
        f"{hub.url}/tuf/targets/",
        bootstrap=root,
    )


def upload(
    hub: TufHub, org: str, targets: Targets, signer: CryptoSigner, token: str | None = None
) -> httpx.Response:
    metadata = Metadata(targets)
    metadata.sign(signer)
    headers = {"authorization": f"Bearer {token or hub.token(org)}"}
    return httpx.post(f"{hub.url}/tuf/targets/{org}", content=metadata.to_bytes(), headers=headers)


def claim(index: bytes, commit: str, path: str) -> dict[str, TargetFile]:
    custom = {"custom": {"commit": commit}}
    return {path: TargetFile(len(index), {"sha256": sha256_hex(index)}, path, custom)}


def expiry() -> object:
    return Targets().expires.replace(year=Targets().expires.year + 1)


def test_hub_without_a_ceremony_answers_404_and_serves_on(start_hub: StartHub, tmp_path: Path) -> None:
    hub = start_hub(tmp_path / "plain")
    assert httpx.get(f"{hub.url}/tuf/metadata/timestamp.json").status_code == 404
    answer = httpx.get(f"{hub.url}/tuf/bundle?namespace=acme&root=0")
    assert answer.status_code == 404 and "khub registry trust init" in answer.json()["error"]
    assert httpx.get(f"{hub.url}/healthz").status_code == 200


def test_stock_updater_given_the_first_root_finds_and_downloads_a_target_after_rotations(
    hub: TufHub, repo: str, org: str, key: Path, tmp_path: Path
) -> None:
    first, index = hub.root(), index_of(1)
    hub.publish(repo, key, index)
    hub.ceremony("rotate", "snapshot")
    hub.ceremony("rotate", "timestamp")
    hub.ceremony("renew", "targets")
    updater = stock_updater(hub, tmp_path / "stock", first)
    found = updater.get_targetinfo(f"{repo}/v1/index.json")
    assert found is not None and found.hashes["sha256"] == sha256_hex(index)
    assert Path(updater.download_target(found)).read_bytes() == index
    assert updater.get_targetinfo(f"{repo}/v2/index.json") is None


def test_bundle_has_every_root_since_and_one_state_down_to_the_organization(
    hub: TufHub, repo: str, org: str, key: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    since = signed(hub.root())["version"]
    hub.ceremony("rotate", "timestamp")
    files = httpx.get(f"{hub.url}/tuf/bundle?namespace={org}&root={since}").json()["files"]
    timestamp, snapshot = signed(files["timestamp.json"].encode()), None
    name = f"{timestamp['meta']['snapshot.json']['version']}.snapshot.json"
    snapshot = signed(files[name].encode())
    versions = {role: meta["version"] for role, meta in snapshot["meta"].items()}
    assert set(files) == {
        f"{since + 1}.root.json",
        "timestamp.json",
        name,
        f"{versions['targets.json']}.targets.json",
        f"{versions[f'org.{org}.json']}.org.{org}.json",
    }
    for name, text in files.items():
        assert httpx.get(f"{hub.url}/tuf/metadata/{name}").text == text


def test_publishing_again_is_no_new_version_and_another_index_is(
    hub: TufHub, repo: str, org: str, key: Path
) -> None:
    commit = hub.publish(repo, key, index_of(1))
    assert hub.publisher(org, key).publish(repo, 1, commit, index_of(1)) is None
    commit = hub.publish(repo, key, index_of(1, "changed"))
    assert hub.publisher(org, key).yank(repo, 1, commit, "wrong results for odd sizes") == 3


def test_upload_signed_by_another_key_is_refused(
    hub: TufHub, repo: str, org: str, key: Path, tmp_path: Path
) -> None:
    commit = hub.commit(repo, 1, {"index.json": index_of(1)})
    stranger = signer_of(read_private(new_key(tmp_path, "stranger"), lambda: ""))
    targets = Targets(1, expires=expiry(), targets=claim(index_of(1), commit, f"{repo}/v1/index.json"))
    answer = upload(hub, org, targets, stranger)
    assert answer.status_code == 403 and "not signed" in answer.json()["error"]
    with pytest.raises(AuthenticationError, match="does not let the key"):
        hub.publisher(org, tmp_path / "stranger.key").check()


@pytest.mark.parametrize("version", [1, 3, 9])
def test_upload_that_is_not_the_next_version_is_a_conflict(
    hub: TufHub, repo: str, org: str, key: Path, version: int
) -> None:
    commit = hub.publish(repo, key, index_of(1))
    signer = signer_of(read_private(key, lambda: ""))
    answer = upload(
        hub,
        org,
        Targets(version, expires=expiry(), targets=claim(index_of(1), commit, f"{repo}/v1/index.json")),
        signer,
    )
    assert answer.status_code == 412


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("other bytes", 409),
        ("other commit", 409),
        ("no such branch", 409),
        ("other organization", 400),
        ("no commit", 400),
        ("delegation", 400),
        ("expired", 400),
        ("garbage", 400),
        ("root", 400),
    ],
)
def test_upload_that_claims_what_is_not_so_is_refused_and_changes_nothing(
    hub: TufHub, repo: str, org: str, key: Path, what: str, status: int
) -> None:
    commit = hub.commit(repo, 1, {"index.json": index_of(1)})
    good = claim(index_of(1), commit, f"{repo}/v1/index.json")
    targets = Targets(1, expires=expiry(), targets=good)
    if what == "other bytes":
        targets.targets = claim(index_of(1, "other"), commit, f"{repo}/v1/index.json")
    elif what == "other commit":
        targets.targets = claim(index_of(1), "0" * 40, f"{repo}/v1/index.json")
    elif what == "no such branch":
        targets.targets = claim(index_of(1), commit, f"{repo}/v7/index.json")
    elif what == "other organization":
        targets.targets = claim(index_of(1), commit, "other/demo/v1/index.json")
    elif what == "no commit":
        targets.targets[f"{repo}/v1/index.json"].unrecognized_fields.clear()
    elif what == "delegation":
        top = Metadata[Targets].from_bytes(httpx.get(f"{hub.url}/tuf/metadata/targets.json").content)
        targets.delegations = top.signed.delegations
    elif what == "expired":
        targets.expires = targets.expires.replace(year=2020)
    before = httpx.get(f"{hub.url}/tuf/metadata/timestamp.json").content
    signer = signer_of(read_private(key, lambda: ""))
    if what in ("garbage", "root"):
        body = b"{}" if what == "garbage" else hub.root()
        headers = {"authorization": f"Bearer {hub.token(org)}"}
        answer = httpx.post(f"{hub.url}/tuf/targets/{org}", content=body, headers=headers)
    else:
        answer = upload(hub, org, targets, signer)
    assert answer.status_code == status, answer.text
    assert httpx.get(f"{hub.url}/tuf/metadata/timestamp.json").content == before


def test_upload_with_the_right_key_and_another_organizations_token_is_refused(
    hub: TufHub, repo: str, org: str, key: Path
) -> None:
    commit = hub.commit(repo, 1, {"index.json": index_of(1)})
    targets = Targets(1, expires=expiry(), targets=claim(index_of(1), commit, f"{repo}/v1/index.json"))
    answer = upload(hub, org, targets, signer_of(read_private(key, lambda: "")), hub.token("other"))
    assert answer.status_code == 403


def test_publishers_of_one_organization_at_once_all_publish(
    hub: TufHub, repo: str, org: str, key: Path
) -> None:
    names = [f"{org}/kernel{number}" for number in range(4)]
    commits = {name: hub.commit(name, 1, {"index.json": index_of(1, name)}) for name in names}
    publisher, failed = hub.publisher(org, key), []

    def publish(name: str) -> None:
        try:
            publisher.publish(name, 1, commits[name], index_of(1, name))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    files = httpx.get(f"{hub.url}/tuf/bundle?namespace={org}&root=1").json()["files"]
    role = signed(next(text for name, text in files.items() if f"org.{org}" in name).encode())
    assert set(role["targets"]) == {f"{name}/v1/index.json" for name in names}


def test_draft_with_too_few_signatures_is_refused(hub: TufHub, tmp_path: Path) -> None:
    out = tmp_path / "draft"
    hub.trust("rotate", "snapshot", "--out", out)
    hub.trust("apply", out / "root.json", code=2)
    assert main_sign(out / "root.json", hub.people[0])
    hub.trust("apply", out / "root.json", code=2)
    stranger = new_key(tmp_path, "stranger")
    assert main_sign(out / "root.json", stranger)
    hub.trust("apply", out / "root.json", code=2)
    assert main_sign(out / "root.json", hub.people[2])
    hub.trust("apply", out / "root.json")


def main_sign(draft: Path, key: Path) -> bool:
    from hub_loader.cli import main

    return main(["registry", "trust", "sign", str(draft), "--key", str(key)]) == 0


def test_root_key_that_is_replaced_signs_no_longer(start_hub: StartHub, tmp_path: Path) -> None:
    hub = TufHub(start_hub(tmp_path / "data"), tmp_path)
    hub.found()
    dave = new_key(tmp_path, "dave")
    alice, bob, carol = hub.people
    for role in ("root", "targets"):
        hub.ceremony("rotate", role, "--add", f"{dave}.pub", "--remove", f"{alice}.pub", signers=[bob, carol])
    out = tmp_path / "draft"
    hub.trust("renew", "root", "--out", out)
    assert main_sign(out / "root.json", alice) and main_sign(out / "root.json", bob)
    hub.trust("apply", out / "root.json", code=2)
    assert main_sign(out / "root.json", dave)
    hub.trust("apply", out / "root.json")


def test_revoked_publisher_key_publishes_no_longer_and_another_takes_over(
    hub: TufHub, repo: str, org: str, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish(repo, key, index_of(1))
    second = new_key(tmp_path, "second")
    hub.delegate(org, key, second)
    hub.ceremony("revoke", f"{key}.pub")
    assert f"{org}: no key that signed its version 1 may do so any more" in capsys.readouterr().out
    with pytest.raises(AuthenticationError, match="does not let the key"):
        hub.publisher(org, key).check()
    taking_over = hub.publisher(org, second)
    with pytest.raises(SignatureError, match="look through it"):
        taking_over.change(lambda targets: None, anew=True)
    assert taking_over.change(lambda targets: None, anew=True, unverified=True) == 2
    index = index_of(1, "again")
    hub.publish(repo, second, index)


@pytest.mark.slow
def test_timestamp_is_signed_again_by_the_running_server_before_it_expires(
    start_hub: StartHub, tmp_path: Path
) -> None:
    hub = TufHub(start_hub(tmp_path / "short"), tmp_path)
    hub.found("--timestamp-days", 4 / 86400)
    hub.hub.stop()
    again = start_hub(tmp_path / "short")
    first = signed(httpx.get(f"{again.url}/tuf/metadata/timestamp.json").content)["version"]
    deadline = time.monotonic() + 60
    while signed(httpx.get(f"{again.url}/tuf/metadata/timestamp.json").content)["version"] < first + 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_servers_that_share_a_database_sign_one_timestamp(hub: TufHub) -> None:
    from registry.store import Store
    from registry.tuf.repository import TufRepository

    data = hub.hub.data
    before = signed(httpx.get(f"{hub.url}/tuf/metadata/timestamp.json").content)["version"]
    repositories = [TufRepository(Store(data), data) for _ in range(4)]
    threads = [threading.Thread(target=repository.refresh) for repository in repositories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert signed(httpx.get(f"{hub.url}/tuf/metadata/timestamp.json").content)["version"] == before
    threads = [
        threading.Thread(target=repository.refresh, kwargs={"force": True}) for repository in repositories
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert signed(httpx.get(f"{hub.url}/tuf/metadata/timestamp.json").content)["version"] == before + 4


def test_status_names_each_role_and_what_is_wrong_with_it(
    hub: TufHub, repo: str, org: str, key: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    hub.ceremony("delegate", "--org", org, "--keys")
    rows = json.loads(khub("registry", "trust", "status", "--data", hub.hub.data, "--json").stdout)
    found = {row["role"]: row["problem"] for row in rows}
    assert found[f"org.{org}"] == "nobody may sign it any more"
    assert [found[role] for role in ("root", "snapshot", "targets", "timestamp")] == [None] * 4


def test_servers_keys_are_its_owners_alone_and_one_that_others_can_read_is_not_used(hub: TufHub) -> None:
    folder = hub.hub.data / "trust"
    keys = list(folder.iterdir())
    assert len(keys) == 2 and folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o177 == 0 for path in keys)
    keys[0].chmod(0o644)
    keys[1].chmod(0o644)
    hub.trust("refresh", "--force", code=30)
    for path in keys:
        path.chmod(0o600)
