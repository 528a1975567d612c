"""kernels.lock: what is written and read, and that locked loads take those bytes and no others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packages import python_package, unique_id, write_package
from static_hub import StaticHub

import hub_loader
from hub_loader import IntegrityError, LockError, get_locked_kernel, load_kernel
from hub_loader.cli import main
from hub_loader.lockfile import KernelLock, LockFile, VariantLock, parse_lock
from hub_loader.request import Request

LOAD = "import hub_loader; print(hub_loader.{}('org/demo', lockfile='kernels.lock').value())"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a project that depends on org/demo 1."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[tool.kernels.dependencies]\n"org/demo" = 1\n')
    monkeypatch.chdir(folder)
    return folder


def in_new_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def read_lock() -> LockFile:
    return parse_lock(Path("kernels.lock").read_bytes(), origin="kernels.lock")


def test_lock_then_has_the_commit_and_for_each_variant_its_manifest_and_size(
    hub: StaticHub, tmp_path: Path
) -> None:
    package = python_package(tmp_path / "source", variants=("torch-cpu", "torch-cuda"))
    commit = hub.publish("org/demo", "v1", package.folder)
    assert main(["lock"]) == 0
    index = json.loads((package.folder / "index.json").read_bytes())["variants"]
    entry = json.loads(Path("kernels.lock").read_bytes())[0]
    assert entry["dependency"] == {"repo-id": "org/demo", "version": 1}
    assert entry["lock"]["commit"] == commit
    for name, folder in package.variants.items():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert entry["lock"]["variants"][name] == {
            "manifest": index[name]["metadata"]["sha256"],
            "size": size,
        }
    assert not list((tmp_path / "cache").rglob("numbers.py"))
    assert read_lock().to_json() == Path("kernels.lock").read_bytes()


@pytest.mark.parametrize(("has_index", "has_digest"), [(True, True), (False, True), (False, False)])
def test_locked_load_then_needs_no_request_once_synced_and_no_particular_hub(
    hub: StaticHub, tmp_path: Path, has_index: bool, has_digest: bool
) -> None:
    package = python_package(tmp_path / "source", value=4, has_index=has_index, has_digest=has_digest)
    hub.publish("org/demo", "v1", package.folder)
    assert main(["lock", "--trust-remote-code", "org/demo"]) == 0
    assert main(["sync", "--into", str(tmp_path / "image")]) == 0
    hub.clear()
    offline = {
        "KERNELS_CACHE": str(tmp_path / "image"),
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://elsewhere.invalid",
    }
    for function in ("load_kernel", "get_locked_kernel"):
        done = in_new_process(LOAD.format(function), **offline)
        assert (done.stdout, done.stderr, hub.requests) == ("4\n", "", [])


def test_get_locked_kernel_when_cold_then_fetches_at_the_locked_commit_though_the_branch_has_moved(
    hub: StaticHub, tmp_path: Path
) -> None:
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "1", value=1).folder)
    assert main(["lock"]) == 0
    subprocess.run(["rm", "-r", tmp_path / "cache"], check=True)
    hub.refs["org/demo"]["old"] = commit
    hub.publish("org/demo", "v1", python_package(tmp_path / "2", value=2).folder)
    hub.clear()
    assert get_locked_kernel("org/demo", lockfile=Path("kernels.lock")).value() == 1
    assert len(hub.requests) == 2 + 5  # index, signature and files
    assert all(commit in path for path in hub.requests)
    hub.clear()
    assert get_locked_kernel("org/demo", lockfile=Path("kernels.lock")).value() == 1
    assert hub.requests == []


def test_load_kernel_when_it_is_not_in_the_cache_then_sends_nothing_and_fails(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    assert main(["lock"]) == 0
    subprocess.run(["rm", "-r", tmp_path / "cache"], check=True)
    hub.clear()
    with pytest.raises(hub_loader.OfflineError, match="org/demo"):
        load_kernel("org/demo", lockfile=Path("kernels.lock"))
    assert hub.requests == []


@pytest.mark.parametrize("has_index", [True, False])
def test_hub_that_has_other_bytes_at_the_locked_commit_is_refused_and_asked_again_later(
    hub: StaticHub, tmp_path: Path, has_index: bool
) -> None:
    good = python_package(tmp_path / "good", value=1, has_index=has_index)
    bad = python_package(tmp_path / "bad", value=2, has_index=has_index, kernel_id=good.id)
    commit = hub.publish("org/demo", "v1", good.folder)
    assert main(["lock", "--trust-remote-code", "org/demo"]) == 0
    subprocess.run(["rm", "-r", tmp_path / "cache"], check=True)
    hub.files[commit] = bad.folder
    wanted = read_lock().kernels[0].variants["torch-cpu"].key
    with pytest.raises(IntegrityError, match=rf"the variant torch-cpu as .*kernels\.lock wants {wanted}"):
        get_locked_kernel("org/demo", lockfile=Path("kernels.lock"))
    assert good.id not in sys.modules
    assert not list((tmp_path / "cache").rglob("numbers.py"))
    hub.files[commit] = good.folder
    assert get_locked_kernel("org/demo", lockfile=Path("kernels.lock")).value() == 1


def test_lock_that_was_edited_to_another_digest_is_refused_though_all_is_cached(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    assert main(["lock"]) == main(["sync"]) == 0
    lock = json.loads(Path("kernels.lock").read_bytes())
    lock[0]["lock"]["variants"]["torch-cpu"]["manifest"] = "0" * 64
    Path("kernels.lock").write_text(json.dumps(lock))
    with pytest.raises(IntegrityError, match="torch-cpu"):
        load_kernel("org/demo", lockfile=Path("kernels.lock"))


def test_variant_that_appears_at_the_locked_commit_is_refused(hub: StaticHub, tmp_path: Path) -> None:
    one = python_package(tmp_path / "one")
    commit = hub.publish("org/demo", "v1", one.folder)
    assert main(["lock"]) == 0
    subprocess.run(["rm", "-r", tmp_path / "cache"], check=True)
    two = python_package(tmp_path / "two", kernel_id=one.id, variants=("torch-cpu", "torch-universal"))
    hub.files[commit] = two.folder
    with pytest.raises(IntegrityError, match="torch-universal as .* wants nothing"):
        get_locked_kernel("org/demo", lockfile=Path("kernels.lock"))


def test_lock_files_of_the_hubs_client_are_read_and_hold_the_commit(hub: StaticHub, tmp_path: Path) -> None:
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "1", value=1).folder)
    hub.refs["org/demo"]["old"] = commit
    hub.publish("org/demo", "v1", python_package(tmp_path / "2", value=2).folder)
    now = [{"dependency": {"repo-id": "org/demo", "version": 1}, "lock": {"commit": commit}}]
    variants = {"torch-cpu": {"hash": "sha256-00", "hash_type": "git_lfs_concat"}}
    before = [{"repo_id": "org/demo", "sha": commit, "variants": variants}]
    for lock in (now, before):
        Path("kernels.lock").write_text(json.dumps(lock))
        assert get_locked_kernel("org/demo", lockfile=Path("kernels.lock")).value() == 1
        assert load_kernel("org/demo", lockfile=Path("kernels.lock")).value() == 1


def test_lock_stock_then_writes_nothing_that_the_hubs_client_refuses(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    assert main(["lock", "--stock"]) == 0
    assert main(["verify", "kernels.lock"]) == 0
    assert "the lock has its commit alone" in capsys.readouterr().out
    assert json.loads(Path("kernels.lock").read_bytes()) == [
        {"dependency": {"repo-id": "org/demo", "version": 1}, "lock": {"commit": commit}}
    ]


def dependent(folder: Path) -> Path:
    """A kernel org/top that adds 1 to what org/demo says, on the CPU alone."""
    code = b"import kernels\ndemo = kernels.get_kernel_dep('org/demo')\ndef value():\n    return demo.value() + 1\n"
    needed = ({"repo-id": "org/demo", "version": 1},)
    options = {"kernel_id": unique_id("top"), "name": "top", "kernel_depends": needed}
    return write_package(folder, {"__init__.py": code}, **options).folder  # type: ignore[arg-type]


def test_lock_then_has_what_kernels_depend_on_and_locked_loads_take_it_from_there(
    hub: StaticHub, tmp_path: Path, project: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "demo", value=1).folder)
    hub.publish("org/top", "v1", dependent(tmp_path / "top"))
    (project / "pyproject.toml").write_text('[tool.kernels.dependencies]\n"org/top" = 1\n')
    assert main(["lock"]) == main(["sync"]) == 0
    lock = read_lock()
    assert [str(kernel.request) for kernel in lock.kernels] == ["org/demo version 1", "org/top version 1"]
    assert [str(kernel.request) for kernel in lock.roots] == ["org/top version 1"]
    hub.publish("org/demo", "v1", python_package(tmp_path / "demo2", value=9).folder)
    code = LOAD.format("load_kernel").replace("org/demo", "org/top")
    assert in_new_process(code).stdout == "2\n"


def test_sync_when_only_what_fits_is_wanted_then_unless_all_variants_are(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = python_package(tmp_path / "source", variants=("torch-cpu", "torch-cuda"))
    hub.publish("org/demo", "v1", package.folder)
    assert main(["lock"]) == 0
    capsys.readouterr()
    for arguments, variants in (
        (["--backend", "cpu"], ["torch-cpu"]),
        (["--all-variants"], [*package.variants]),
    ):
        assert main(["sync", "--json", *arguments]) == 0
        synced = json.loads(capsys.readouterr().out)
        assert [one["variant"] for one in synced["variants"]] == variants
        assert all(Path(one["path"], "metadata.json").is_file() for one in synced["variants"])


def test_locked_public_kernel_needs_no_publisher_but_false_still_asks(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_loader.config._PUBLIC_HOSTS", ("127.0.0.1",))
    hub.signs = False
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    assert main(["lock"]) == hub_loader.PolicyError.exit_code
    assert main(["lock", "--trust-remote-code", "org/demo"]) == 0
    with pytest.raises(hub_loader.PolicyError):
        get_locked_kernel("org/demo", lockfile=Path("kernels.lock"), trust_remote_code=False)
    assert get_locked_kernel("org/demo", lockfile=Path("kernels.lock")).value() == 1


def test_lock_of_the_calling_package_is_found_in_its_metadata(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=6).folder)
    assert main(["lock"]) == main(["sync"]) == 0
    site = tmp_path / "site"
    (site / "user_package").mkdir(parents=True)
    (site / "user_package/__init__.py").write_text(
        "import hub_loader\n\ndef value():\n    return hub_loader.load_kernel('org/demo', lockfile=None).value()\n\n"
        "def repository(): return hub_loader.LockedFuncRepository('org/demo', func_name='value')\n"
    )
    info = site / "user_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: user-dist\nVersion: 1.0\n")
    (info / "RECORD").write_text("user_package/__init__.py,,\n")
    (info / "kernels.lock").write_bytes(Path("kernels.lock").read_bytes())
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = in_new_process("import user_package; print(user_package.value())", PYTHONPATH=paths)
    assert done.stdout == "6\n", done.stderr
    # What a package makes keeps its lock, whoever loads it.
    code = (
        "import hub_loader, user_package\n"
        "made = user_package.repository()\n"
        "assert made in {user_package.repository()}\n"
        "print(made.load()().forward())\n"
        "hub_loader.LockedFuncRepository('org/demo', func_name='value').load()\n"
    )
    done = in_new_process(code, PYTHONPATH=paths)
    assert done.stdout == "6\n", done.stderr
    assert "LockError: __main__ is no installed package with a kernels.lock: pass lockfile=" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[{}]",
        '[{"dependency": {"repo-id": "org/demo", "version": 1}, "lock": {"commit": "abc"}}]',
        '[{"dependency": {"repo-id": "demo", "version": 1}, "lock": {"commit": "' + "a" * 40 + '"}}]',
        '[{"dependency": {"repo-id": "org/demo"}, "lock": {"commit": "' + "a" * 40 + '"}}]',
        '[{"dependency": {"repo-id": "org/demo", "version": 1}, "lock": {"commit": "'
        + "a" * 40
        + '", "variants": {"torch-cpu": {"manifest": "abc", "size": 1}}}}]',
        '[{"dependency": {"repo-id": "org/demo", "version": 1}, "lock": {"commit": "'
        + "a" * 40
        + '", "variants": {}}}]',
    ],
)
def test_lock_that_is_malformed_is_named_with_its_cure(text: str) -> None:
    Path("kernels.lock").write_text(text)
    with pytest.raises(LockError, match=r"kernels\.lock"):
        load_kernel("org/demo", lockfile=Path("kernels.lock"))


def test_lock_that_has_a_kernel_twice_is_refused() -> None:
    kernel = KernelLock(Request("org/demo", 1, None), "a" * 40, {"torch-cpu": VariantLock("b" * 64, 1)})
    with pytest.raises(LockError, match="twice"):
        parse_lock(LockFile((kernel, kernel), "x").to_json(), origin="kernels.lock")


def test_kernel_that_is_not_locked_is_named_with_its_cure(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    assert main(["lock"]) == 0
    with pytest.raises(LockError, match=r'org/other is not in .*add "org/other" = 1'):
        load_kernel("org/other", lockfile=Path("kernels.lock"))
    with pytest.raises(LockError, match="cannot be read"):
        load_kernel("org/demo", lockfile=Path("nowhere/kernels.lock"))
    with pytest.raises(LockError, match="no installed package"):
        load_kernel("org/demo")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no"),
        ("[", "is not TOML"),
        ("[tool.other]", r"has no \[tool\.kernels\.dependencies\]"),
        ('[tool.kernels.dependencies]\n"org/demo" = 1.5\n', "neither a version"),
        ('[tool.kernels.dependencies]\n"org/demo" = true\n', "neither a version"),
    ],
)
def test_project_that_names_no_kernels_is_told_how(
    project: Path, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "pyproject.toml").unlink()
    if text is not None:
        (project / "pyproject.toml").write_text(text)
    assert main(["lock"]) == LockError.exit_code
    assert re.search(says, capsys.readouterr().err)
    assert not Path("kernels.lock").exists()


def test_verify_then_finds_one_changed_byte_in_the_cache_and_in_what_is_locked(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "1", variants=("torch-cpu", "torch-cuda")).folder)
    hub.publish("org/plain", "v1", python_package(tmp_path / "2", has_index=False, has_digest=False).folder)
    Path("pyproject.toml").write_text('[tool.kernels.dependencies]\n"org/demo" = 1\n"org/plain" = "v1"\n')
    assert main(["lock", "--trust-remote-code", "org/plain"]) == main(["sync", "--backend", "cpu"]) == 0
    assert main(["verify"]) == main(["verify", "kernels.lock"]) == 0
    assert "not looked at: org/demo version 1 torch-cuda is not in the cache" in capsys.readouterr().out
    for path in sorted((tmp_path / "cache").rglob("numbers.py")):
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content + b"#")
        for arguments in (["verify"], ["verify", "kernels.lock"]):
            assert main(arguments) == IntegrityError.exit_code
            assert str(path) in capsys.readouterr().out
        path.write_bytes(content)
    assert main(["verify"]) == 0


def test_list_then_shows_versions_newest_first(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in (2, 10):
        hub.publish("org/demo", f"v{version}", python_package(tmp_path / str(version)).folder)
    assert main(["list", "org/demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["10", "2"]
    assert lines[0].endswith("newest")
