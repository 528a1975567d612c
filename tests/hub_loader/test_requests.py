"""How many requests a call sends, and how many of them have to wait for one another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from packages import python_package
from static_hub import StaticHub

import hub_loader
from hub_loader import get_kernel

FILES = 5  # of a variant of python_package, metadata.json among them


def all_at_once(hub: StaticHub) -> None:
    """Answer the files of a python_package, and index and signature, only when all of them have been asked for."""
    hub.together.update(dict.fromkeys(("index.json", "index.json.dsse"), threading.Barrier(2)))
    barrier = threading.Barrier(FILES)
    paths = ("metadata.json", "torch-cpu/__init__.py", "demo/__init__.py", "numbers.py", "table.txt")
    hub.together.update(dict.fromkeys(paths, barrier))


def test_cold_by_version_then_two_requests_more_than_files_and_two_round_trips(
    hub: StaticHub, tmp_path: Path
) -> None:
    all_at_once(hub)
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo", version=1)
    index = "/kernels/org/demo/resolve/v1/index.json"
    assert sorted(hub.requests[:2]) == [index, f"{index}.dsse"]
    assert len(hub.requests) == 2 + FILES
    hub.clear()
    get_kernel("org/demo", version=1)
    assert hub.requests == []


def test_cold_without_a_version_then_three_round_trips(hub: StaticHub, tmp_path: Path) -> None:
    all_at_once(hub)
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo")
    index = f"/kernels/org/demo/resolve/{commit}/index.json"
    assert hub.requests[0] == "/api/kernels/org/demo/refs"
    assert sorted(hub.requests[1:3]) == [index, f"{index}.dsse"]
    assert len(hub.requests) == 3 + FILES


@pytest.mark.parametrize("how", ["version=1", "revision='v1'", ""])
@pytest.mark.parametrize("has_index", [True, False])
def test_warm_in_a_new_process_then_none(hub: StaticHub, tmp_path: Path, how: str, has_index: bool) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", has_index=has_index).folder)
    code = f"from hub_loader import get_kernel; print(get_kernel('org/demo', {how}).value())"
    if not has_index:  # nor a signature
        code = code.replace("'org/demo', ", "'org/demo', trust_remote_code=True, ")
    asked = []
    for _ in range(2):
        hub.clear()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout == "1\n", done.stderr
        asked.append(len(hub.requests))
    assert asked[0] > FILES
    assert asked[1] == 0


def test_arguments_that_python_calls_equal_are_not_the_same_question(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo", version=1)
    for version in (True, 1.0):
        with pytest.raises(hub_loader.UsageError, match="is not a number"):
            get_kernel("org/demo", version=version)  # type: ignore[arg-type]


def test_moved_branch_is_seen_when_the_ref_is_old_or_khub_get_asks(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from hub_loader import get_kernel; print(get_kernel('org/demo', version=1).value())"

    def load(**environ: str) -> str:
        env = {**os.environ, **environ}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip() or done.stderr

    hub.publish("org/demo", "v1", python_package(tmp_path / "1", value=1).folder)
    assert load() == "1"
    hub.publish("org/demo", "v1", python_package(tmp_path / "2", value=2).folder)
    assert load() == "1"
    assert load(KHUB_REFRESH="0") == "2"
    hub.publish("org/demo", "v1", python_package(tmp_path / "3", value=3).folder)
    assert load() == "2"
    hub_loader.fetch_kernel("org/demo", version=1)  # what `khub get` does
    assert load() == "3"


def test_clock_that_was_set_back_then_the_ref_is_asked_again(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub_loader.install_kernel("org/demo", version=1)
    (path,) = (tmp_path / "cache").rglob("v1.json")
    path.write_text(path.read_text().replace('"seen": ', '"seen": 9'))  # far in the future
    monkeypatch.setattr("hub_loader.pinned._versions", {})
    hub.clear()
    hub_loader.install_kernel("org/demo", version=1)
    assert sorted(hub.requests) == [f"/kernels/org/demo/resolve/v1/index.json{end}" for end in ("", ".dsse")]


def test_commit_header_that_is_missing_then_the_refs_tell_it(hub: StaticHub, tmp_path: Path) -> None:
    hub.names_commit = False
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=5).folder)
    assert get_kernel("org/demo", version=1).value() == 5
    assert "/api/kernels/org/demo/refs" in hub.requests


def test_hub_that_answers_another_commit_than_was_asked_is_refused(hub: StaticHub, tmp_path: Path) -> None:
    commit = hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    hub.refs["org/demo"]["f" * 40] = commit  # a branch named like a commit
    with pytest.raises(hub_loader.IntegrityError, match=f"was asked for {'f' * 40} and answered {commit}"):
        get_kernel("org/demo", revision="f" * 40)


def test_user_agent_is_sent_beside_our_own_and_not_without_consent(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    get_kernel("org/demo", version=1, user_agent={"trainer": "2.0", "run": 7})
    assert set(hub.agents) == {"kernel-hub; trainer/2.0; run/7"}
    hub.agents.clear()
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    get_kernel("org/demo", user_agent="trainer/2.0")
    assert set(hub.agents) == {"kernel-hub"}
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    with pytest.raises(hub_loader.UsageError, match="cannot be sent"):
        get_kernel("org/demo", revision="v1", user_agent="a\r\nb: c")


def test_install_kernel_when_only_local_files_count_then_sends_nothing(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    with pytest.raises(hub_loader.OfflineError):
        hub_loader.install_kernel("org/demo", version=1, local_files_only=True)
    assert hub.requests == []
    folder = hub_loader.install_kernel("org/demo", version=1)
    hub.clear()
    assert hub_loader.install_kernel("org/demo", version=1, local_files_only=True) == folder
    assert (folder / "__init__.py").is_file()
    assert hub.requests == []


def test_local_kernels_are_loaded_instead_without_a_request(
    hub: StaticHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    python_package(tmp_path / "mine", value=8)
    monkeypatch.setenv("LOCAL_KERNELS", f"org/other=/nowhere:org/demo={tmp_path / 'mine'}")
    assert get_kernel("org/demo", version=1).value() == 8
    assert hub_loader.has_kernel("org/demo", version=1)
    assert hub.requests == []
    assert "org/demo: LOCAL_KERNELS has it loaded from" in caplog.text
    monkeypatch.setenv("LOCAL_KERNELS", "org/demo")
    with pytest.raises(hub_loader.UsageError, match="write org/name=/path"):
        get_kernel("org/demo", version=1)
