"""Call get_kernel in many processes at the same moment: REPO, a folder for their caches, how many.

Prints what each call took, in seconds, and how long all of them took together, as JSON. Every process is forked
from this one, which has imported what a load imports and asked nothing, and has a cache of its own.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from hub_loader import get_kernel


def load(repo: str, cache: Path, start: Barrier, answer: Connection) -> None:
    os.environ["KERNELS_CACHE"] = str(cache)
    start.wait()
    began = time.perf_counter()
    module = get_kernel(repo, version=1, trust_remote_code=True)
    took = time.perf_counter() - began
    assert module.__all__ == []
    answer.send(took)


def import_what_a_load_imports(fork: multiprocessing.context.ForkContext, repo: str, cache: Path) -> None:
    """Have a child load once and say what it imported; connections and what it remembers end with it."""
    ours, theirs = fork.Pipe(duplex=False)

    def child() -> None:
        os.environ["KERNELS_CACHE"] = str(cache)
        before = {*sys.modules}
        get_kernel(repo, version=1, trust_remote_code=True)
        new = [name for name in sys.modules if name not in before and not name.startswith("_kernel_")]
        found = [name for name in new if getattr(sys.modules[name], "__spec__", None)]
        theirs.send(found)  # not what a module put there itself, which nothing finds

    process = fork.Process(target=child)
    process.start()
    for name in ours.recv():
        importlib.import_module(name)
    process.join()


def main(repo: str, caches: Path, count: int) -> None:
    fork = multiprocessing.get_context("fork")
    import_what_a_load_imports(fork, repo, caches / "first")
    start = fork.Barrier(count + 1)
    pipes = [fork.Pipe(duplex=False) for _ in range(count)]
    processes = [
        fork.Process(target=load, args=(repo, caches / str(number), start, theirs))
        for number, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    wall = time.perf_counter() - began
    if any(process.exitcode for process in processes):
        raise SystemExit("a load failed; its error is above")
    print(json.dumps({"wall": wall, "seconds": [ours.recv() for ours, _ in pipes]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
