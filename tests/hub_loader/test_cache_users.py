"""One cache, several users of a group: what one fetched the other loads, and neither is in the other's way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packages import python_package
from static_hub import StaticHub

pytestmark = pytest.mark.slow

GROUP, ALICE, BOB, STRANGER = 59000, 59001, 59002, 59003
# Everything is imported and tried while it is still root, for other users may not get at this Python.
FETCH = """
import os, sys, tempfile
from hub_loader import KernelHubError, install_kernel
os.environ['KERNELS_CACHE'] = tempfile.mkdtemp(dir=os.environ['KERNELS_CACHE'])
install_kernel('org/rehearsal', version=1)
cache, user, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.environ['KERNELS_CACHE'] = os.environ['HF_HOME'] = cache
os.setgroups([])
os.setgid(group)
os.setuid(user)
os.umask(0o077)
os.environ['KHUB_TRUST_FILE'] = os.path.join(tempfile.mkdtemp(), 'trust.json')
try:
    print((install_kernel('org/demo', version=1, trust_remote_code=True) / 'numbers.py').read_text(), end='')
except KernelHubError as error:
    sys.exit(f'{type(error).__name__}: {error}')
"""
FETCHED = "VALUE = 7\n"


@pytest.fixture
def cache() -> Iterator[Path]:
    """A cache that a group may write to, where other users can get at it."""
    if os.getuid() != 0:
        pytest.skip("only root can act as several users")
    folder = Path(tempfile.mkdtemp(prefix="khub-users-"))
    folder.chmod(0o755)
    (folder / "kernel-hub").mkdir()
    os.chown(folder / "kernel-hub", ALICE, GROUP)
    (folder / "kernel-hub").chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def rehearsal(hub: StaticHub, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    hub.publish("org/rehearsal", "v1", python_package(tmp_path / "rehearsal").folder)


def fetch(cache: Path, user: int, group: int = GROUP, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FETCH, cache, str(user), str(group)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


def test_users_of_one_group_then_one_fetches_and_the_other_loads_and_asks_again(
    hub: StaticHub, tmp_path: Path, cache: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    first = fetch(cache, ALICE)
    assert (first.stdout, first.stderr) == (FETCHED, "")
    hub.clear()
    done = fetch(cache, BOB)
    assert done.stdout == FETCHED, done.stderr
    assert not any("org/demo" in path for path in hub.requests)
    again = fetch(cache, BOB, KHUB_REFRESH="0")
    assert (again.stdout, again.stderr) == (FETCHED, "")  # and could write down what the hub said


def test_user_who_goes_on_where_another_was_interrupted_then_does_not_need_that_ones_files(
    hub: StaticHub, tmp_path: Path, cache: Path
) -> None:
    package = python_package(tmp_path / "source", value=7, data=os.urandom(1_000_000))
    hub.publish("org/demo", "v1", package.folder)
    hub.truncated["data.bin"] = 500_000
    assert "expected 1000000 bytes, got 500000" in fetch(cache, ALICE).stderr
    hub.truncated.clear()
    done = fetch(cache, BOB)
    assert done.stdout == FETCHED, done.stderr
    done = fetch(cache, ALICE)
    assert done.stdout == FETCHED, done.stderr


def test_user_who_may_not_enter_the_folder_then_is_told_which_setting_names_it(
    hub: StaticHub, tmp_path: Path, cache: Path
) -> None:
    (cache / "private" / "cache").mkdir(parents=True)
    (cache / "private").chmod(0o700)
    refused = fetch(cache / "private" / "cache", STRANGER)
    assert refused.stderr.startswith("UsageError: KERNELS_CACHE=") or "UsageError: HF_HOME=" in refused.stderr
    assert "cannot be used (Permission denied): set it to another folder" in refused.stderr


def test_user_outside_the_group_then_loads_what_is_there_and_is_told_about_the_rest(
    hub: StaticHub, tmp_path: Path, cache: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    absent = fetch(cache, STRANGER, STRANGER)
    assert "CacheError" in absent.stderr and "have its owner fetch the kernel" in absent.stderr
    done = fetch(cache, ALICE)
    assert done.stdout == FETCHED, done.stderr
    there = fetch(cache, STRANGER, STRANGER)
    assert (there.stdout, there.stderr) == (FETCHED, "")
