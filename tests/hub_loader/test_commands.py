"""The loader's commands, run as `khub` runs them: what they print and the code they exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packages import native_variant, python_package
from static_hub import StaticHub

from hub_loader import errors
from hub_loader.cli import main

COMMANDS = ("env", "explain", "get", "list", "lock", "sync", "verify", "cache", "completion")


def test_explain_then_prints_each_variant_with_its_verdict(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = ("torch-universal", native_variant(), "cp39-cpu-x86_64-linux")
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", variants=variants).folder)
    assert main(["explain", "org/demo", "--backend", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("signed by the key ")
    lines = [line.split() for line in printed[3:]]
    assert [(line[0], line[1]) for line in lines] == [
        (native_variant(), "chosen"),
        ("torch-universal", "fits"),
        ("cp39-cpu-x86_64-linux", "no"),
    ]
    assert "needs the interpreter cp39" in " ".join(lines[-1])


def test_explain_when_no_variant_fits_then_still_prints_and_exits_with_its_code(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = python_package(tmp_path / "source", variants=("cp39-cpu-x86_64-linux",))
    hub.publish("org/demo", "v1", package.folder)
    assert main(["explain", "org/demo", "--backend", "cpu", "--json"]) == 12
    answer = json.loads(capsys.readouterr().out)
    assert answer["chosen"] is None
    assert [decision["accepted"] for decision in answer["decisions"]] == [False]


def test_get_then_caches_without_importing_and_cache_lists_and_clears_it(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = python_package(tmp_path / "source")
    commit = hub.publish("org/demo", "v1", package.folder)
    assert main(["get", "org/demo", "--version", "1", "--json"]) == 0
    fetched = json.loads(capsys.readouterr().out)
    assert (fetched["id"], fetched["revision"], fetched["variant"]) == (package.id, commit, "torch-cpu")
    assert Path(fetched["path"], "metadata.json").is_file()
    assert all(
        path.stat().st_mode & 0o222 == 0 for path in Path(fetched["path"]).rglob("*") if path.is_file()
    )
    assert main(["cache", "ls", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["variants"]
    assert (listed["kernel"], listed["path"]) == ("demo v1 cpu", fetched["path"])
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 variants")
    assert not (tmp_path / "cache/kernel-hub").exists()


def test_cache_ls_when_an_entry_is_damaged_then_still_lists_it(
    hub: StaticHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache/kernel-hub/variants/0000").mkdir(parents=True)
    assert main(["cache", "ls"]) == 0
    assert capsys.readouterr().out.startswith("unreadable")


def test_env_then_shows_what_the_resolver_sees(hub: StaticHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["endpoint"] == hub.endpoint
    assert seen["python"] in native_variant()
    assert main(["env"]) == 0
    assert seen["torch"]["release"] in capsys.readouterr().out


def test_khub_when_something_is_wrong_then_prints_one_line_and_exits_with_its_code(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = python_package(tmp_path / "source")
    hub.publish("org/demo", "v1", package.folder)
    hub.publish("org/empty", "v1", tmp_path)
    hub.replaced["numbers.py"] = b"VALUE = 2\n"
    expected = {
        "org/nothing": errors.RepositoryNotFoundError,
        "org/demo --version 9": errors.VersionNotFoundError,
        "org/demo --backend cuda": errors.NoMatchingVariantError,
        "org/demo --backend cpu": errors.IntegrityError,
        "org/empty": errors.InvalidKernelError,
        "misspelt": errors.UsageError,
    }
    for arguments, error in expected.items():
        assert main(["get", *arguments.split()]) == error.exit_code
        assert len(capsys.readouterr().err.splitlines()) == 1
    hub.truncated["numbers.py"] = 4
    assert main(["get", "org/demo", "--backend", "cpu"]) == errors.DownloadError.exit_code
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["get", "org/demo", "--backend", "cpu"]) == errors.OfflineError.exit_code
    assert not list((tmp_path / "cache/kernel-hub/variants").rglob("numbers.py"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_then_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"khub {command}" in capsys.readouterr().out.partition("example")[2]
