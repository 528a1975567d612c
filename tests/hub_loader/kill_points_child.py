"""Load a kernel again and again, each time killed one operation on the cache later, then load it undisturbed.

Arguments: the cache, the value the kernel must have. Prints how many points there were. A module of its own
because it forks: one import serves all the processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from huggingface_hub import get_session

from hub_loader import get_kernel

_BY_DESCRIPTOR = ("fcntl.flock", "os.chmod", "os.utime", "os.truncate")
_BY_PATH = (
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.scandir",
    "shutil.rmtree",
    *_BY_DESCRIPTOR,
)


def kill_at(point: int, cache: str) -> None:
    """Let this process die by SIGKILL before its operation number `point` (from 1) on the cache."""
    left = point

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _BY_PATH and (
            (event in _BY_DESCRIPTOR and isinstance(arguments[0], int))
            or any(isinstance(one, str | os.PathLike) and cache in os.fspath(one) for one in arguments)
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(cache: str, value: int, point: int) -> int:
    """The exit status of a process that loads the kernel, killed at `point` (0: never)."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        if point:
            kill_at(point, cache)
        os._exit(0 if get_kernel("org/demo", version=1).value() == value else 3)
    except BaseException as error:
        print(f"point {point}: {error!r}", flush=True)
        os._exit(4)


def main() -> None:
    cache, value, point = sys.argv[1], int(sys.argv[2]), 0
    get_session()
    while True:
        point += 1
        killed = run(cache, value, point)
        if killed not in (0, -signal.SIGKILL):
            sys.exit(f"killed at point {point}: exit {killed}")
        if (after := run(cache, value, 0)) != 0:
            sys.exit(f"after the kill at point {point}: exit {after}")
        for path in (Path(cache, "kernel-hub", "variants")).iterdir():
            if len([file for file in path.rglob("*") if file.is_file()]) != 5:
                sys.exit(f"after the kill at point {point}: {path} is not whole")
        shutil.rmtree(cache)
        if killed == 0:
            print(point - 1)
            return


main()
