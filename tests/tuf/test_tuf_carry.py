"""Publishers' lists over an air gap: two real hubs, each with a root of its own."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import httpx
import pytest
from khub_process import StartHub
from test_export import members, resealed
from tuf_hub import TufHub, index_of, new_key, signed

from hub_loader.errors import SignatureError
from hub_loader.trust.tuf_client import add_root, namespace
from registry.blobs import BlobStore
from registry.carry_in import Imported, carry_in
from registry.clock import utc_now
from registry.export import Exported, export
from registry.place import Place, open_blobs
from registry.store import Store
from registry.tuf.repository import TufRepository


@pytest.fixture(scope="module")
def far(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> TufHub:
    """The hub behind the gap, whose root other people hold."""
    folder = tmp_path_factory.mktemp("far")
    made = TufHub(start_hub(folder / "data"), folder)
    made.found()
    return made


def opened(hub: TufHub) -> tuple[Store, BlobStore]:
    store = Store(hub.hub.data)
    return store, open_blobs(Place(hub.hub.data), store)


def carry_out(hub: TufHub, file: Path, *repos: str) -> Exported:
    return export(*opened(hub), file, repos, utc_now())


def take(far: TufHub, file: Path) -> Imported:
    store, blobs = opened(far)
    return carry_in(store, blobs, file, tuf=TufRepository(store, far.hub.data))


def read(far: TufHub, org: str) -> dict[str, str | None]:
    """What a reader who was given the far hub's root believes: target to reason of a yank."""
    add_root(far.url, far.root(), "root.json")
    found = namespace(far.config(), org, fresh=True)
    assert found is not None
    return {path: listed.yanked for path, listed in found.targets.items()}


def test_list_when_carried_to_a_hub_that_lets_its_keys_publish_then_readers_of_that_hub_believe_it(
    hub: TufHub, far: TufHub, org: str, repo: str, key: Path, tmp_path: Path
) -> None:
    commit = hub.publish(repo, key, index_of(1))
    done = carry_out(hub, tmp_path / "1.tar", repo)
    assert done.lists == (org,)
    far.delegate(org, key)
    assert take(far, tmp_path / "1.tar").lists == {org: "version 1 taken over"}
    assert read(far, org) == {f"{repo}/v1/index.json": None}
    assert take(far, tmp_path / "1.tar").lists == {org: "it is here already"}
    hub.publish(repo, key, index_of(2), version=2)
    hub.publisher(org, key).yank(repo, 1, commit, "wrong for odd sizes")
    carry_out(hub, tmp_path / "3.tar", repo)
    assert take(far, tmp_path / "3.tar").lists == {org: "version 3 taken over"}
    expected = {f"{repo}/v1/index.json": "wrong for odd sizes", f"{repo}/v2/index.json": None}
    assert read(far, org) == expected
    old = httpx.get(f"{far.url}/tuf/metadata/1.org.{org}.json")
    assert old.status_code == 200  # for who is in the middle of it


def test_list_when_older_than_the_one_there_then_left_out(
    hub: TufHub, far: TufHub, org: str, repo: str, key: Path, tmp_path: Path
) -> None:
    far.delegate(org, key)
    hub.publish(repo, key, index_of(1))
    carry_out(hub, tmp_path / "1.tar", repo)
    hub.publish(repo, key, index_of(2), version=2)
    carry_out(hub, tmp_path / "2.tar", repo)
    take(far, tmp_path / "2.tar")
    assert "at version 2 here and at 1 in the archive" in take(far, tmp_path / "1.tar").lists[org]
    assert f"{repo}/v2/index.json" in read(far, org)


def test_list_when_its_keys_may_not_publish_there_then_left_out_until_they_may(
    hub: TufHub, far: TufHub, org: str, repo: str, key: Path, tmp_path: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    carry_out(hub, tmp_path / "1.tar", repo)
    assert "khub registry trust delegate" in take(far, tmp_path / "1.tar").lists[org]
    far.delegate(org, new_key(tmp_path, "somebody-else"))
    assert "not signed by a key" in take(far, tmp_path / "1.tar").lists[org]
    assert read(far, org) == {}
    far.delegate(org, key)
    assert take(far, tmp_path / "1.tar").lists[org] == "version 1 taken over"
    far.ceremony("revoke", f"{key}.pub")
    with pytest.raises(SignatureError, match="no key"):
        read(far, org)
    hub.publish(repo, key, index_of(2), version=2)
    carry_out(hub, tmp_path / "2.tar", repo)
    assert "left out" in take(far, tmp_path / "2.tar").lists[org]


def test_list_when_padded_to_more_than_clients_read_then_left_out(
    hub: TufHub, far: TufHub, org: str, repo: str, key: Path, tmp_path: Path
) -> None:
    far.delegate(org, key)
    hub.publish(repo, key, index_of(1))
    carry_out(hub, tmp_path / "1.tar", repo)
    found = members(tmp_path / "1.tar")
    padded = [(i, c + b" " * (5_000_000 if i.name.startswith("tuf/") else 0)) for i, c in found]
    resealed(tmp_path / "1.tar", padded)
    assert "is read by no client" in take(far, tmp_path / "1.tar").lists[org]
    assert read(far, org) == {}


def test_list_when_it_names_what_the_hub_there_has_otherwise_then_left_out(
    hub: TufHub, far: TufHub, org: str, repo: str, key: Path, tmp_path: Path
) -> None:
    other = f"{org}/other"
    far.delegate(org, key)
    hub.publish(repo, key, index_of(1))
    hub.publish(other, key, index_of(1, "another"))
    carry_out(hub, tmp_path / "1.tar", repo)
    far.commit(other, 1, {"index.json": index_of(1, "not what was listed")})
    assert f"{other} here has not the index.json of v1" in take(far, tmp_path / "1.tar").lists[org]


def test_list_when_the_hub_there_has_no_root_then_left_out_and_kernels_come_all_the_same(
    hub: TufHub, org: str, repo: str, key: Path, tmp_path: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    carry_out(hub, tmp_path / "1.tar", repo)
    store = Store(tmp_path / "plain")
    done = carry_in(
        store,
        open_blobs(Place(tmp_path / "plain"), store),
        tmp_path / "1.tar",
        tuf=TufRepository(store, tmp_path / "plain"),
    )
    assert done.created == (repo,) and "is no TUF repository" in done.lists[org]


def test_archive_when_made_of_a_tuf_repository_then_it_holds_no_key_and_no_token(
    hub: TufHub, org: str, repo: str, key: Path, tmp_path: Path
) -> None:
    hub.publish(repo, key, index_of(1))
    carry_out(hub, tmp_path / "1.tar", repo)
    archive = (tmp_path / "1.tar").read_bytes()
    assert b"PRIVATE KEY" not in archive and hub.token(org).encode() not in archive
    with tarfile.open(tmp_path / "1.tar") as tar:
        names = tar.getnames()
        member = tar.extractfile(f"tuf/{org}.json")
        assert member is not None
        assert signed(member.read())["version"] == 1
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None and json.load(manifest)["format"] == 2
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"manifest.json", "repos", "tuf", "blobs"}
