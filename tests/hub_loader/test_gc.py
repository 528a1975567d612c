"""Collection: what was used longest ago goes first, what is in use stays, nothing else is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packages import python_package
from static_hub import StaticHub

from hub_loader import UsageError, detect_environment, fetch_kernel
from hub_loader.cli import main
from hub_loader.config import load_config, parse_size
from hub_loader.gc import RECENT_S, Collected, collect, stored_variants
from hub_loader.source_build import build_kernel
from hub_loader.store import Store

TINY = Path(__file__).parents[1] / "build_matrix" / "kernels" / "tiny-noarch"
DAY = 24 * 3600.0


def add(store: Store, number: int, size: int, age: float) -> Path:
    """A variant of `size` bytes that another process used `age` seconds ago."""
    folder = store.variant(f"{number:064x}")
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(size))
    set_age(folder, age)
    return folder


def set_age(path: Path, age: float) -> None:
    os.utime(path, (time.time() - age,) * 2)


def removed(found: Collected) -> list[Path]:
    return [variant.path for variant in found.removed]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kernel-hub")


def test_collect_then_removes_what_was_used_longest_ago_until_the_rest_fits(store: Store) -> None:
    new, old, older = add(store, 1, 100, DAY), add(store, 2, 100, 2 * DAY), add(store, 3, 100, 3 * DAY)
    assert removed(collect(store, 300)) == []
    found = collect(store, 150)
    assert (removed(found), found.size, found.kept) == ([older, old], 100, ())
    assert store.variants() == [new]


def test_collect_when_used_within_the_last_hour_then_keeps_it_and_says_why(store: Store) -> None:
    recent, old = add(store, 1, 100, RECENT_S - 60), add(store, 2, 100, DAY)
    found = collect(store, 0)
    assert removed(found) == [old]
    assert [(variant.path, reason) for variant, reason in found.kept] == [
        (recent, "used within the last hour")
    ]


def test_collect_when_a_running_process_has_it_then_keeps_it_until_that_ends(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    code = (
        "import sys, hub_loader; k = hub_loader.get_kernel('org/demo'); print(k.value(), flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "7\n"
    store = Store(load_config().cache)
    (folder,) = store.variants()
    set_age(folder, DAY)
    ((kept, reason),) = collect(store, 0).kept
    assert (kept.path, reason) == (folder, "a running process has it open")
    process.communicate("\n", timeout=20)
    assert removed(collect(store, 0)) == [folder]


def test_collect_when_the_clock_was_set_back_then_the_future_counts_as_now_and_ages(store: Store) -> None:
    future = add(store, 1, 100, -400 * DAY)
    assert [variant.path for variant, _ in collect(store, 0).kept] == [future]
    assert abs(future.stat().st_mtime - time.time()) < 60
    set_age(future, DAY)
    assert removed(collect(store, 0)) == [future]


def test_collect_when_the_clock_has_jumped_forward_then_what_is_open_stays_and_the_rest_is_fetched_again(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    store, folder = Store(load_config().cache), fetch_kernel("org/demo").path
    set_age(folder, 50 * 365 * DAY)
    assert removed(collect(store, 0)) == []  # this process has it
    store.remove(folder)
    assert fetch_kernel("org/demo").path == folder
    assert (folder / "numbers.py").is_file()


def test_collect_when_downloads_were_interrupted_long_ago_then_removes_them(store: Store) -> None:
    for name, age in (
        ("partial/0/old", 2 * DAY),
        ("partial/0/new", 3600.0),
        ("tmp/old", DAY),
        ("tmp/new", 1.0),
    ):
        (store.root / name).mkdir(parents=True)
        (store.root / name / "a.bin").write_bytes(b"1")
        set_age(store.root / name / "a.bin", age)
        set_age(store.root / name, age)
    assert collect(store, 10**9).leftovers == 2
    assert sorted(path.name for path in store.root.glob("*/**/a.bin")) == ["a.bin", "a.bin"]
    assert (store.root / "partial/0/new").is_dir() and (store.root / "tmp/new").is_dir()


def test_collect_when_something_foreign_is_among_the_variants_then_leaves_it(
    store: Store, tmp_path: Path
) -> None:
    add(store, 1, 1, DAY)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("1")
    (store.root / "variants" / "link").symlink_to(tmp_path / "precious")
    (store.root / "variants" / "file").write_text("x")
    for name in ("link", "file"):
        os.utime(store.root / "variants" / name, (0, 0), follow_symlinks=False)
    found = collect(store, 0)
    assert [variant.path.name for variant, _ in found.kept] == ["file", "link"]
    assert len(found.removed) == 1
    assert (tmp_path / "precious" / "a").is_file()


def test_collect_when_the_folder_is_shared_with_the_stock_client_then_its_files_stay(
    hub: StaticHub, tmp_path: Path
) -> None:
    stock = tmp_path / "cache" / "kernels--org--demo"
    (stock / "blobs").mkdir(parents=True)
    (stock / "snapshots/abc/build").mkdir(parents=True)
    (stock / "blobs/0123").write_bytes(b"1")
    (stock / "snapshots/abc/build/a.py").symlink_to("../../../blobs/0123")
    for path in stock.rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    before = sorted((str(path), path.lstat().st_mtime) for path in stock.rglob("*"))
    store = Store(load_config().cache)
    add(store, 1, 1, DAY)
    assert len(collect(store, 0).removed) == 1
    assert sorted((str(path), path.lstat().st_mtime) for path in stock.rglob("*")) == before


def test_fetch_when_the_user_has_set_a_size_then_makes_room_after_the_download(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    store = Store(load_config().cache)
    old, recent = add(store, 1, 100, DAY), add(store, 2, 100, 1.0)
    monkeypatch.setenv("KHUB_CACHE_MAX_SIZE", "100")
    found = fetch_kernel("org/demo")
    assert store.variants() == sorted([found.path, recent])
    assert not old.exists()


def test_use_when_the_last_one_was_long_ago_then_it_is_written_down(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    folder = fetch_kernel("org/demo").path
    for age in (DAY, -DAY):
        set_age(folder, age)
        fetch_kernel("org/demo")
        assert abs(folder.stat().st_mtime - time.time()) < 60


def test_cache_gc_then_prints_what_went_and_what_stayed(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    store, fetched = Store(load_config().cache), fetch_kernel("org/demo").path
    old = add(store, 1, 100, DAY)
    assert main(["cache", "gc", "--max-size", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in answer["removed"]] == [str(old)]
    assert [(one["path"], one["reason"]) for one in answer["kept"]] == [
        (str(fetched), "used within the last hour")
    ]
    assert answer["size"] == sum(variant.size for variant in stored_variants(store))
    assert main(["cache", "gc"]) == UsageError.exit_code
    assert main(["cache", "ls", "--max-size", "5GB"]) == UsageError.exit_code
    monkeypatch.setenv("KHUB_CACHE_MAX_SIZE", "1GB")
    assert main(["cache", "gc"]) == 0
    assert capsys.readouterr().out.startswith("removed 0 variants")


def test_cache_verify_then_names_what_is_corrupt(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    folder = fetch_kernel("org/demo").path
    assert main(["cache", "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"][0]["problem"] is None
    (folder / "numbers.py").chmod(0o644)
    (folder / "numbers.py").write_bytes(b"VALUE = 2\n")
    assert main(["cache", "verify"]) == 13
    assert f"{folder / 'numbers.py'} is corrupt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 << 29), ("7", 7), ("2K", 2000)],
)
def test_parse_size_then_gives_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "5 apples", "GB", "1e9", "5GBB", "nan"])
def test_parse_size_when_it_is_none_then_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_config_when_the_size_is_misspelt_then_names_the_variable() -> None:
    with pytest.raises(UsageError, match="KHUB_CACHE_MAX_SIZE: 'lots' is not a size"):
        load_config({"KHUB_CACHE_MAX_SIZE": "lots"})


@pytest.fixture
def built(hub: StaticHub, tmp_path: Path) -> Path:
    """A package that was built from source into the cache, last used a day ago; returns its folder."""
    build_kernel("org/tiny", TINY, detect_environment(), "cpu", load_config().cache)
    (folder,) = Store(load_config().cache).builds()
    set_age(folder, DAY)
    return folder


def test_cache_ls_and_clear_then_count_what_was_built_here(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "ls", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["variants"]
    assert (listed["kernel"], listed["built"], listed["path"]) == ("tiny-noarch v2 cpu", True, str(built))
    assert listed["size"] == sum(path.stat().st_size for path in built.rglob("*") if path.is_file())
    assert main(["cache", "ls"]) == 0
    assert f"{built}  (built here)\n1 variants, " in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 variants, ")
    assert not built.exists()


def test_cache_verify_then_names_what_is_corrupt_in_a_build(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == f"verified: {built}\n1 variants looked at in {built.parents[1]}\n"
    damaged = built / "build" / "torch-cpu" / "__init__.py"
    damaged.write_text("import os\n")
    assert main(["cache", "verify"]) == 13
    assert f"{damaged} is corrupt" in capsys.readouterr().out
    (built / "index.json").unlink()
    assert main(["cache", "verify"]) == 13
    assert f"{built / 'index.json'}" in capsys.readouterr().out


def test_collect_then_removes_an_unused_build_and_leaves_one_in_use(built: Path) -> None:
    store = Store(load_config().cache)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from hub_loader.store import Store\n"
        "assert Store(Path(sys.argv[1])).use_folder(Path(sys.argv[2]))\n"
        "print(1, flush=True); time.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(store.root), str(built)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        set_age(built, DAY)
        found = collect(store, 0)
        process.kill()
    assert [(one.path, reason) for one, reason in found.kept] == [(built, "a running process has it open")]
    build_kernel("org/tiny", TINY, detect_environment(), "cpu", store.root)  # this process uses it too
    assert time.time() - built.stat().st_mtime < 60
    other = store.root / "builds" / "other"
    other.mkdir()
    (other / "a.bin").write_bytes(bytes(9))
    set_age(other, DAY)
    assert removed(collect(store, 0)) == [other]
