"""A disk that is full or read-only, really mounted for one process alone, and clocks that jump."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packages import python_package
from static_hub import StaticHub

from hub_loader import install_kernel
from hub_loader.config import load_config
from hub_loader.store import Store

LOAD = "from hub_loader import get_kernel; print(get_kernel('org/demo', version=1).value())"
DAY = 24 * 3600


def unshare() -> list[str]:
    return ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]


def with_mount(mount: str, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the shell command `mount` has been run before, for it alone."""
    if subprocess.run([*unshare(), "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    command = f"{mount} && exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    return subprocess.run(
        [*unshare(), "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


def read_only(cache: Path) -> str:
    quoted = shlex.quote(str(cache))
    return f"mount --bind {quoted} {quoted} && mount -o remount,bind,ro {quoted}"


def test_full_disk_then_says_what_to_do_and_with_space_the_next_call_goes_on(
    hub: StaticHub, tmp_path: Path
) -> None:
    package = python_package(tmp_path / "source", value=7, data=os.urandom(2_000_000))
    hub.publish("org/demo", "v1", package.folder)
    hub.block = 65536
    cache = tmp_path / "cache"
    cache.mkdir()
    code = f"""
import subprocess
from hub_loader import CacheError, get_kernel
try:
    get_kernel('org/demo', version=1)
except CacheError as error:
    print(error)
subprocess.run(['mount', '-o', 'remount,size=8m', {str(cache)!r}], check=True)
print(get_kernel('org/demo', version=1).value())
"""
    done = with_mount(f"mount -t tmpfs -o size=1m tmpfs {shlex.quote(str(cache))}", code)
    message, value = done.stdout.splitlines() or [done.stderr, ""]
    assert "No space left on device" in message
    assert (
        "free some space (`khub cache gc --max-size SIZE`), or set KERNELS_CACHE to another folder" in message
    )
    assert value == "7"
    assert hub.sent["data.bin"] < 3_500_000  # not twice the file: what was on disk was not sent again


def test_full_disk_when_the_kernel_is_there_then_it_loads_although_nothing_can_be_written(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    cache = tmp_path / "cache"
    cache.mkdir()
    code = f"""
import os, subprocess, sys
load = [sys.executable, '-c', {LOAD!r}]
assert subprocess.run(load).returncode == 0
with open({str(cache / "filler")!r}, 'wb', buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
sys.exit(subprocess.run(load, env={{**os.environ, 'KHUB_REFRESH': '0'}}).returncode)
"""
    done = with_mount(f"mount -t tmpfs -o size=1m tmpfs {shlex.quote(str(cache))}", code)
    assert (done.stdout, done.returncode) == ("7\n7\n", 0), done.stderr
    assert "free some space" in done.stderr


def test_file_size_limit_then_says_so_and_without_it_the_next_call_goes_on(
    hub: StaticHub, tmp_path: Path
) -> None:
    package = python_package(tmp_path / "source", value=7, data=os.urandom(2_000_000))
    hub.publish("org/demo", "v1", package.folder)
    code = """
import resource
from hub_loader import CacheError, get_kernel
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    get_kernel('org/demo', version=1)
except CacheError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(get_kernel('org/demo', version=1).value())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    message, value = done.stdout.splitlines() or [done.stderr, ""]
    assert "File too large" in message and "KERNELS_CACHE" in message
    assert value == "7"


@pytest.mark.parametrize("has_index", [True, False])
def test_read_only_cache_when_the_kernel_is_there_then_it_loads(
    hub: StaticHub, tmp_path: Path, has_index: bool
) -> None:
    anyhow = LOAD.replace("version=1", "version=1, trust_remote_code=True")  # without an index: unsigned
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7, has_index=has_index).folder)
    install_kernel("org/demo", version=1, trust_remote_code=True)
    (folder,) = Store(load_config().cache).variants()
    os.utime(folder, (0, 0))
    remembered = with_mount(read_only(tmp_path / "cache"), anyhow)
    assert (remembered.stdout, remembered.stderr) == ("7\n", "")
    asked = with_mount(read_only(tmp_path / "cache"), anyhow, KHUB_REFRESH="0")
    assert asked.stdout == "7\n", asked.stderr
    assert "Read-only file system" in asked.stderr
    hub.stop()
    offline = with_mount(read_only(tmp_path / "cache"), anyhow, HF_HUB_OFFLINE="1")
    assert (offline.stdout, offline.stderr) == ("7\n", "")


def test_read_only_cache_when_the_kernel_is_not_there_then_says_what_to_do(
    hub: StaticHub, tmp_path: Path
) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source").folder)
    (tmp_path / "cache").mkdir()
    done = with_mount(read_only(tmp_path / "cache"), LOAD)
    (message,) = [line for line in done.stderr.splitlines() if "CacheError" in line]
    assert "Read-only file system" in message
    assert "have its owner fetch the kernel (`khub get`), or set KERNELS_CACHE to another folder" in message


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
def test_clock_jump_then_what_is_cached_loads(hub: StaticHub, tmp_path: Path, jump: int) -> None:
    """Every file of the cache is from the future or from long ago."""
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    install_kernel("org/demo", version=1)
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, (path.stat().st_mtime + jump,) * 2)
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_clock_set_back_then_a_branch_is_asked_for_again(hub: StaticHub, tmp_path: Path) -> None:
    hub.publish("org/demo", "v1", python_package(tmp_path / "source", value=7).folder)
    install_kernel("org/demo", version=1)
    (path,) = (tmp_path / "cache").rglob("refs/v1.json")
    text = path.read_text()
    seen = text.partition('"seen": ')[2].split("\n")[0].rstrip(",")
    path.write_text(text.replace(seen, str(float(seen) + DAY)))
    hub.clear()
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=60)
    assert done.stdout == "7\n"
    assert sorted(hub.requests) == [f"/kernels/org/demo/resolve/v1/index.json{end}" for end in ("", ".dsse")]
