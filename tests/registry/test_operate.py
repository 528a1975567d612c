"""What operators do: collect what is unused, back up, restore, check."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from khub_process import khub
from shell_tokens import create_token, list_tokens
from sqlalchemy import delete, insert, update

from hub_loader.errors import RegistryError, UsageError
from registry.backup import backup, restore
from registry.blobs import BlobStore
from registry.clock import utc_now
from registry.collect import collect
from registry.fsck import fsck
from registry.models import Commit, Orphan, Ref, TreeEntry
from registry.names import RepoName
from registry.place import Place, open_blobs
from registry.settings import claim, upload_key
from registry.store import Store
from registry.tree import Add, File, blob_oid
from registry.upkeep import collect_if_due

REPO = RepoName("acme", "relu")
DAY = timedelta(days=1)


def opened(place: Place) -> tuple[Store, BlobStore]:
    store = Store(place.data, place.database)
    return store, open_blobs(place, store)


def commit(store: Store, blobs: BlobStore, files: dict[str, bytes], repo: RepoName = REPO) -> str:
    """A commit as the server makes it: content first, then the metadata."""
    store.create_repo(repo, repo.org)
    adds = [
        Add(path, File(blob_oid(content), blobs.put([content]), len(content)))
        for path, content in files.items()
    ]
    blobs.sync()
    return store.commit(repo, "main", adds, message="m", author="a")


def contents(store: Store, blobs: BlobStore, repo: RepoName = REPO) -> dict[str, bytes]:
    found = store.list_tree(store.resolve(repo, "main"), "", True, "", 1000)
    return {entry.path: b"".join(blobs.read(entry.file.sha256)) for entry in found if entry.file}


def names(blobs: BlobStore) -> set[str]:
    return {name for name, _ in blobs.storage.names()}


# -- gc


def test_gc_when_content_is_unused_for_the_grace_period_then_it_is_deleted(place: Place) -> None:
    store, blobs = opened(place)
    commit(store, blobs, {"a": b"used"})
    used = names(blobs)
    lost = blobs.put([b"no commit followed"])
    now = utc_now()
    assert collect(store, blobs, now).waiting == 1
    assert collect(store, blobs, now + DAY / 2).waiting == 1
    assert names(blobs) == used | {lost}
    assert collect(store, blobs, now + DAY).deleted_bytes == len(b"no commit followed")
    assert names(blobs) == used and contents(store, blobs) == {"a": b"used"}


def test_gc_when_the_last_repository_that_had_it_is_deleted_then_so_is_the_content(place: Place) -> None:
    store, blobs = opened(place)
    commit(store, blobs, {"a": b"shared", "b": b"own"})
    commit(store, blobs, {"a": b"shared"}, RepoName("acme", "other"))
    store.delete_repo(REPO)
    now = utc_now()
    collect(store, blobs, now)
    assert collect(store, blobs, now + DAY).deleted == 1
    assert contents(store, blobs, RepoName("acme", "other")) == {"a": b"shared"}


def test_gc_when_somebody_asked_for_unused_content_then_it_stays_for_another_period(place: Place) -> None:
    store, blobs = opened(place)
    lost = blobs.put([b"uploaded once"])
    now = utc_now()
    collect(store, blobs, now - 2 * DAY)
    assert blobs.keep(lost) == 13  # "is it here already?", asked now
    assert collect(store, blobs, now).deleted == 0
    assert collect(store, blobs, now + DAY / 2).deleted == 0
    assert collect(store, blobs, now + 2 * DAY).deleted == 1


def test_gc_when_the_content_comes_into_use_then_it_is_no_orphan_any_more(place: Place) -> None:
    store, blobs = opened(place)
    blobs.put([b"later"])
    now = utc_now()
    collect(store, blobs, now - 2 * DAY)
    commit(store, blobs, {"a": b"later"})
    collect(store, blobs, now)
    store.delete_repo(REPO)
    assert collect(store, blobs, now + DAY).deleted == 0  # it begins anew


def test_gc_when_it_races_with_an_upload_of_the_same_content_then_no_commit_loses_it(place: Place) -> None:
    store, blobs = opened(place)
    store.create_repo(REPO, "acme")
    content = [secrets.token_bytes(100) for _ in range(20)]
    for each in content:
        blobs.put([each])
    collect(store, blobs, utc_now() - 2 * DAY)  # every one of them may be deleted at any moment
    with ThreadPoolExecutor(2) as pool:
        collecting = pool.submit(lambda: collect(*opened(place), utc_now()))
        for number, each in enumerate(content):
            commit(store, blobs, {f"{number}": each})
        collecting.result()
    assert contents(store, blobs) == {f"{number}": each for number, each in enumerate(content)}


def test_gc_when_several_servers_share_a_database_then_one_of_them_collects(place: Place) -> None:
    pairs = [opened(place) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda pair: collect_if_due(*pair), pairs)) == [False] * 3 + [True]
    assert not claim(pairs[0][0], "collected", DAY, utc_now())
    assert claim(pairs[0][0], "collected", DAY, utc_now() + 2 * DAY)
    assert len({upload_key(store) for store, _ in pairs}) == 1


def test_gc_when_told_to_stop_then_the_rest_waits_for_the_next(place: Place) -> None:
    store, blobs = opened(place)
    for number in range(5):
        blobs.put([b"unused %d" % number])
    now = utc_now()
    collect(store, blobs, now - 2 * DAY)
    asked = iter([False, False, True])
    assert collect(store, blobs, now, stopped=lambda: next(asked)).deleted == 2
    assert collect(store, blobs, now).deleted == 3


# -- backup and restore


@pytest.fixture(params=["into a folder", "into postgres and s3"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "into a folder":
        return Place(tmp_path / "restored")
    bucket = request.getfixturevalue("s3_url")
    return Place(tmp_path / "restored", request.getfixturevalue("postgres_url") + "x", bucket + "/restored")


@pytest.fixture
def to(empty: Place, request: pytest.FixtureRequest) -> Place:
    if empty.database is not None:  # one more database on the server that the place itself may be on
        request.getfixturevalue("postgres").url(empty.database.rpartition("/")[2])
    return empty


def test_restore_when_into_any_kind_of_place_then_everything_is_as_it_was(
    place: Place, to: Place, tmp_path: Path
) -> None:
    store, blobs = opened(place)
    first = commit(store, blobs, {"a": b"one", "b/c": b"two" * 1000, "empty": b""})
    second = commit(store, blobs, {"a": b"three", "é": b"name"})
    store.create_tag(REPO, "v1", first)
    create_token(store, "acme", can_write=True)
    blobs.put([b"unused"])
    key = upload_key(store)
    saved = backup(store, blobs, tmp_path / "b.tar", utc_now())
    assert saved.blobs == 5 and saved.missing == () and (tmp_path / "b.tar").stat().st_mode & 0o77 == 0

    assert restore(to, tmp_path / "b.tar").blobs == 5
    new_store, new_blobs = opened(to)
    assert new_store.refs(REPO) == store.refs(REPO)
    assert new_store.resolve(REPO, "v1").commit == first
    assert contents(new_store, new_blobs) == contents(store, blobs)
    assert list_tokens(new_store) == list_tokens(store) != []
    assert upload_key(new_store) == key
    assert fsck(new_store, new_blobs).problems == ()
    assert new_store.create_repo(RepoName("acme", "another"), "acme")  # ids go on after those restored
    assert new_store.resolve(REPO, "main").commit == second != commit(new_store, new_blobs, {"d": b"four"})


def test_backup_when_the_registry_is_written_meanwhile_then_it_is_one_state_of_it(
    place: Place, tmp_path: Path
) -> None:
    store, blobs = opened(place)
    commit(store, blobs, {"0": b"0"})
    stop = threading.Event()

    def write() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            commit(store, blobs, {f"{number}": secrets.token_bytes(1000)})
        return number

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while len(store.list_tree(store.resolve(REPO, "main"), "", True, "", 10)) < 3:
            pass
        saved = backup(store, blobs, tmp_path / "b.tar", utc_now())
        stop.set()
        assert writing.result() > 2
    assert saved.missing == ()
    restore(Place(tmp_path / "restored"), tmp_path / "b.tar")
    checked = fsck(*opened(Place(tmp_path / "restored")))
    assert checked.problems == () and checked.commits >= 3


def test_restore_when_the_place_is_not_empty_then_refused_and_left_alone(
    place: Place, tmp_path: Path
) -> None:
    store, blobs = opened(place)
    commit(store, blobs, {"a": b"one"})
    backup(store, blobs, tmp_path / "b.tar", utc_now())
    made = commit(store, blobs, {"a": b"two"})
    with pytest.raises(RegistryError, match="not empty"):
        restore(place, tmp_path / "b.tar")
    assert store.resolve(REPO, "main").commit == made
    with pytest.raises(UsageError, match="exists already"):
        backup(store, blobs, tmp_path / "b.tar", utc_now())


def test_restore_when_the_file_is_damaged_then_refused_and_the_place_stays_empty(tmp_path: Path) -> None:
    store, blobs = opened(Place(tmp_path / "data"))
    commit(store, blobs, {"a": b"content" * 1000})
    backup(store, blobs, tmp_path / "b.tar", utc_now())
    good = (tmp_path / "b.tar").read_bytes()
    at = good.index(b"content" * 1000)
    damaged = {
        "changed": good[:at] + b"C" + good[at + 1 :],
        "cut": good[: at + 100],
        "other": b"no backup" * 1000,
        "empty": b"",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RegistryError):
            restore(Place(tmp_path / "restored"), tmp_path / name)
    restore(Place(tmp_path / "restored"), tmp_path / "b.tar")  # what those left is not in the way
    assert contents(*opened(Place(tmp_path / "restored"))) == {"a": b"content" * 1000}


def test_restore_when_made_by_a_newer_program_then_it_says_so(tmp_path: Path) -> None:
    store, blobs = opened(Place(tmp_path / "data"))
    with pytest.MonkeyPatch.context() as newer:
        newer.setattr("registry.migrations.current", lambda connection: "9999")
        backup(store, blobs, tmp_path / "b.tar", utc_now())
    with pytest.raises(RegistryError, match="newer registry"):
        restore(Place(tmp_path / "restored"), tmp_path / "b.tar")


# -- fsck


def test_fsck_when_all_is_well_then_it_counts(place: Place) -> None:
    store, blobs = opened(place)
    commit(store, blobs, {"a": b"one", "b/c": b"two"})
    commit(store, blobs, {"a": b"one", "d/e/f": b"three"})
    checked = fsck(store, blobs)
    assert (checked.repos, checked.commits, checked.blobs, checked.bytes) == (1, 3, 3, 11)
    assert checked.problems == ()


BREAK: dict[str, tuple[Callable[[Store], object], str]] = {
    "reference": (lambda _: update(Ref).values(commit_oid="0" * 40), "points to the commit"),
    "parent": (lambda _: delete(Commit).where(Commit.message != "m"), "follows"),
    "message": (lambda _: update(Commit).values(message="forged"), "something else"),
    "tree": (lambda _: delete(TreeEntry).where(TreeEntry.path == "b"), "does not have the files"),
    "file": (lambda _: delete(TreeEntry).where(TreeEntry.path == "a"), "does not have the files"),
    "size": (lambda _: update(TreeEntry).where(TreeEntry.path == "a").values(size=4), "another id or size"),
}


@pytest.mark.parametrize("kind", BREAK)
def test_fsck_when_metadata_was_changed_then_it_says_where(place: Place, kind: str) -> None:
    store, blobs = opened(place)
    commit(store, blobs, {"a": b"one", "b/c": b"two"})
    change, expected = BREAK[kind]
    with store.write() as session:
        session.execute(change(store))  # type: ignore[call-overload]
    problems = fsck(store, blobs).problems
    assert any(expected in problem.what and problem.where == "acme/relu" for problem in problems), problems


def test_fsck_when_content_is_missing_then_it_says_whose(place: Place) -> None:
    store, blobs = opened(place)
    commit(store, blobs, {"a": b"one"})
    (sha256,) = names(blobs)
    blobs.storage.delete(sha256)
    (problem,) = fsck(store, blobs).problems
    assert problem.where == sha256 and "acme/relu: a" in problem.what and "upload it again" in problem.what


def test_fsck_when_content_is_damaged_then_repair_makes_room_for_the_right_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store, blobs = opened(Place(data))
    commit(store, blobs, {"a": b"one", "b": b"two"})
    sha256 = blobs.put([b"one"])
    (data / "blobs" / sha256).write_bytes(b"0ne")
    store.close()

    found = khub("registry", "fsck", "--data", data)
    assert found.returncode == 13 and "acme/relu: a" in found.stdout and "--repair" in found.stderr
    refused = khub("registry", "backup", "--data", data, tmp_path / "b.tar")
    assert refused.returncode == 13 and sha256 in refused.stderr
    repaired = khub("registry", "fsck", "--data", data, "--repair", "--json")
    (problem,) = json.loads(repaired.stdout)["problems"]
    assert "put aside" in problem["repaired"] and (data / "damaged" / sha256).read_bytes() == b"0ne"
    store, blobs = opened(Place(data))
    commit(store, blobs, {"a": b"one"})
    assert fsck(store, blobs).problems == ()


# -- the commands


def test_registry_commands_when_used_on_a_folder_then_each_says_what_it_did(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store, blobs = opened(Place(data))
    commit(store, blobs, {"a": b"one"})
    blobs.put([b"unused"])
    with store.write() as session:
        session.execute(insert(Orphan).values(sha256="0" * 64, since=utc_now()))
    store.close()
    done = [
        khub("registry", *command)
        for command in (
            ("gc", "--data", data),
            ("gc", "--data", data, "--grace", "0", "--audit-older-than", "1d", "--json"),
            ("backup", "--data", data, tmp_path / "b.tar"),
            ("restore", "--data", tmp_path / "new", tmp_path / "b.tar"),
            ("fsck", "--data", tmp_path / "new", "--json"),
        )
    ]
    assert [one.returncode for one in done] == [0] * 5, [one.stderr for one in done]
    assert "1 (0.0 MB) are unused" in done[0].stdout
    collected = json.loads(done[1].stdout)
    assert (collected["deleted"], collected["audit_entries"]) == (1, 0)
    assert "1 blobs" in done[2].stdout and "1 blobs" in done[3].stdout
    assert json.loads(done[4].stdout)["problems"] == []


def test_restore_when_the_folder_is_being_served_then_refused(
    start_hub: Callable[..., object], tmp_path: Path
) -> None:
    store, blobs = opened(Place(tmp_path / "data"))
    backup(store, blobs, tmp_path / "b.tar", utc_now())
    start_hub(tmp_path / "data")
    refused = khub("registry", "restore", "--data", tmp_path / "data", tmp_path / "b.tar")
    assert refused.returncode == 30 and "being served" in refused.stderr
