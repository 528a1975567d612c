"""The cache: complete or absent, and errors that name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_loader import CacheError
from hub_loader.store import KnownRefs, Store

HUB, REPO, DIGEST = "http://127.0.0.1:1", "org/demo", "0" * 64


def test_adding_variant_when_the_block_ends_then_it_is_there_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    with store.adding_variant(DIGEST) as folder:
        (folder / "a.py").write_text("1")
        assert not store.variant(DIGEST).exists()
    assert [path.name for path in store.variant(DIGEST).iterdir()] == ["a.py"]
    assert store.variants() == [store.variant(DIGEST)]


def test_adding_variant_when_the_block_fails_then_nothing_is_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyError), store.adding_variant(DIGEST) as folder:
        (folder / "a.py").write_text("1")
        raise KeyError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not store.variant(DIGEST).exists()


def test_adding_variant_when_another_was_faster_then_its_work_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.adding_variant(DIGEST) as slow:
        (slow / "a.py").write_text("slow")
        with store.adding_variant(DIGEST) as fast:
            (fast / "a.py").write_text("fast")
    assert (store.variant(DIGEST) / "a.py").read_text() == "fast"


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
