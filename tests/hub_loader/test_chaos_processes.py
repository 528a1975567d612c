"""Many processes at once, and processes that are killed: one download, nothing wrong loaded, the next call works."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from packages import native_package, python_package
from static_hub import StaticHub

PROCESSES = 32
LOAD = "from hub_loader import get_kernel; import sys; print('ready', flush=True); sys.stdin.readline(); "
VALUE = "print(get_kernel('org/demo', version=1).value())"


def start(code: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def load_at_once(code: str, count: int) -> list[tuple[str, str]]:
    """What `count` processes print, which wait for each other before they load."""
    processes = [start(LOAD + code) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=120) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("has_index", [True, False])
def test_32_first_loads_at_once_then_each_file_is_asked_for_once(
    hub: StaticHub, tmp_path: Path, has_index: bool
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7, has_index=has_index).folder)
    hub.pace["numbers.py"] = 0.5
    value = VALUE if has_index else VALUE.replace("version=1", "version=1, trust_remote_code=True")
    assert load_at_once(value, PROCESSES) == [("7\n", "")] * PROCESSES
    assert {path: count for path, count in Counter(hub.requests).items() if count > 1} == {}
    cache = tmp_path / "cache/kernel-hub"
    assert [list((cache / name).glob("*")) for name in ("tmp", "locks", "partial/*")] == [[], [], []]


@pytest.mark.slow
def test_first_loads_at_once_without_a_version_then_the_branches_are_asked_for_once(
    hub: StaticHub, tmp_path: Path
) -> None:
    package = native_package(tmp_path / "source", answer=42)
    hub.publish("org/demo", "v1", package.folder)
    code = "print(get_kernel('org/demo').answer())"
    assert load_at_once(code, 8) == [("42\n", "")] * 8
    assert {path: count for path, count in Counter(hub.requests).items() if count > 1} == {}


@pytest.mark.slow
@pytest.mark.heavy
def test_kill_at_every_operation_on_the_cache_then_the_next_call_works(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    child = Path(__file__).with_name("kill_points_child.py")
    command = [sys.executable, str(child), str(tmp_path / "cache"), "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 30


@pytest.mark.slow
def test_kill_at_random_moments_of_a_download_then_the_next_call_goes_on(
    hub: StaticHub, tmp_path: Path
) -> None:
    size, chance = 200_000, random.Random(0)
    package = python_package(tmp_path / "source", value=7, data=os.urandom(size))
    hub.publish("org/demo", "v1", package.folder)
    hub.block, hub.pace["data.bin"] = 1000, 0.005  # a second in all
    kills = 0
    for _ in range(60):
        process = start("from hub_loader import get_kernel; " + VALUE)
        before, deadline = hub.sent["data.bin"], time.monotonic() + chance.uniform(0.0, 0.25)
        while process.poll() is None and (hub.sent["data.bin"] == before or time.monotonic() < deadline):
            if hub.sent["data.bin"] == before:
                deadline = time.monotonic() + chance.uniform(0.0, 0.25)
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        output, errors = process.communicate()
        if process.returncode == 0:
            assert (output, errors) == ("7\n", "")
            break
        kills += 1
        assert process.returncode == -signal.SIGKILL, errors
        if list((tmp_path / "cache/kernel-hub/variants").glob("*")):
            break  # killed when all was done
    else:
        pytest.fail("no attempt was ever finished")
    hub.stop()
    assert start("from hub_loader import get_kernel; " + VALUE).communicate() == ("7\n", "")
    assert kills > 2
    # What was under way in a pipe is sent again, what was on disk is not.
    assert hub.sent["data.bin"] < size + kills * 100_000


@pytest.mark.slow
def test_first_loads_when_the_first_process_hangs_then_the_others_do_not(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    hub.block, hub.pace["numbers.py"] = 1, 0.2
    hung = start("from hub_loader import get_kernel; " + VALUE)
    while not hub.sent["numbers.py"]:
        time.sleep(0.01)
    hung.send_signal(signal.SIGSTOP)
    try:
        (output, errors) = start("from hub_loader import get_kernel; " + VALUE).communicate(timeout=60)
        assert (output, errors) == ("7\n", "")
    finally:
        hung.send_signal(signal.SIGCONT)
    assert hung.communicate(timeout=60) == ("7\n", "")
