"""The cache: complete or absent, and errors that name it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hub_loader import CacheError, DownloadError, IntegrityError, InvalidKernelError
from hub_loader.store import KnownRefs, Store

HUB, REPO, DIGEST = "http://127.0.0.1:1", "org/demo", "0" * 64


def test_adding_variant_when_the_block_ends_then_it_is_there_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    with store.adding_variant(DIGEST) as folder:
        assert folder is not None
        (folder / "a.py").write_text("1")
        assert not store.variant(DIGEST).exists()
    assert [path.name for path in store.variant(DIGEST).iterdir()] == ["a.py"]
    assert store.variants() == [store.variant(DIGEST)]


@pytest.mark.parametrize("error", [IntegrityError, InvalidKernelError])
def test_adding_variant_when_the_bytes_are_wrong_then_nothing_is_left(
    tmp_path: Path, error: type[Exception]
) -> None:
    store = Store(tmp_path)
    with pytest.raises(error), store.adding_variant(DIGEST) as folder:
        assert folder is not None
        (folder / "a.py").write_text("1")
        raise error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not store.variant(DIGEST).exists()


def test_adding_variant_when_it_was_interrupted_then_the_next_attempt_finds_the_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DownloadError), store.adding_variant(DIGEST) as folder:
        assert folder is not None
        (folder / "a.py").write_text("1")
        raise DownloadError
    assert not store.variant(DIGEST).exists()
    with store.adding_variant(DIGEST) as folder:
        assert folder is not None
        assert (folder / "a.py").read_text() == "1"
    assert not folder.exists()


def test_adding_variant_when_it_is_there_then_there_is_nothing_to_fill(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.adding_variant(DIGEST):
        pass
    with store.adding_variant(DIGEST) as folder:
        assert folder is None


def test_adding_variant_when_another_was_faster_without_a_lock_then_its_work_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.adding_variant(DIGEST) as slow:
        assert slow is not None
        (slow / "a.py").write_text("slow")
        store.variant(DIGEST).mkdir(parents=True)
        (store.variant(DIGEST) / "a.py").write_text("fast")
    assert (store.variant(DIGEST) / "a.py").read_text() == "fast"
    assert not slow.exists()


def test_store_when_its_folder_is_a_groups_then_what_is_made_below_is_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    store, old = Store(tmp_path), os.umask(0o077)
    try:
        store.remember_refs(HUB, REPO, {}, REPO)
        with store.adding_variant(DIGEST):
            pass
    finally:
        os.umask(old)
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o7777 for path in folders} == {0o2775}
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.stat().st_mode & 0o777 == 0o664


def test_remember_refs_then_are_kept_apart_by_hub_and_repository(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.remember_refs(HUB, REPO, {"v1": "a" * 40}, REPO)
    assert {name: ref.commit for name, ref in store.refs(HUB, REPO).refs.items()} == {"v1": "a" * 40}
    assert store.refs("http://other:8000", REPO).refs == {}
    assert store.refs(HUB, "org/other") == KnownRefs(0.0, {})


def test_remember_ref_when_the_branches_were_listed_before_then_the_later_word_holds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.remember_ref(HUB, REPO, "v1", "a" * 40, REPO)
    store.remember_refs(HUB, REPO, {"v1": "b" * 40, "feature/x": "c" * 40}, REPO)
    assert store.refs(HUB, REPO).refs["v1"].commit == "b" * 40
    store.remember_ref(HUB, REPO, "feature/x", "d" * 40, "org/moved")
    known = store.refs(HUB, REPO)
    assert (known.refs["feature/x"].commit, known.refs["feature/x"].repo_id) == ("d" * 40, "org/moved")
    assert known.refs["v1"].commit == "b" * 40
    assert known.listed == known.refs["v1"].seen > 0


@pytest.mark.parametrize("damage", ["{", "[1]", "{}"])
def test_refs_when_the_file_is_damaged_then_names_it_and_the_cure(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.remember_refs(HUB, REPO, {}, REPO)
    (path,) = tmp_path.rglob("branches.json")
    path.write_text(damage)
    with pytest.raises(CacheError, match=rf"{path} is damaged: delete it"):
        store.refs(HUB, REPO)


def test_store_when_its_folder_cannot_be_made_then_names_it_and_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot write the cache .*set KERNELS_CACHE"):
        Store(tmp_path / "file" / "cache").remember_refs(HUB, REPO, {}, REPO)
