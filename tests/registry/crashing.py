"""A commit in a process that ends itself with SIGKILL at the n-th of the points that are watched.

The points are what Python's audit hooks report of files (created, linked, renamed, removed) and, reported in
the same way here, every flush to the disk, every request to an object store and every commit of a database,
once before and once after it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import obstore
from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from registry.names import RepoName
from registry.place import Place, open_blobs
from registry.store import Store
from registry.tree import Add, File, blob_oid

POINTS = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "test.point"}
REPO = RepoName("acme", "relu")


def commit(store: Store, place: Place, files: dict[str, bytes]) -> str:
    """A commit as the server makes it: content first, then the metadata."""
    blobs = open_blobs(place, store)
    adds = [
        Add(path, File(blob_oid(content), blobs.put([content]), len(content)))
        for path, content in files.items()
    ]
    blobs.sync()
    return store.commit(REPO, "main", adds, message="m", author="a")


def commit_and_crash(place: Place, files: dict[str, bytes], point: int) -> tuple[bool, str | None]:
    """Whether the process was killed at its `point`-th point, and the commit it had confirmed, if it had."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crashing"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(dict(os.environ), place, files, point, theirs))
    process.start()
    theirs.close()
    process.join(60)
    try:
        confirmed = ours.recv()
    except EOFError:
        confirmed = None
    ours.close()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0, confirmed


def _child(
    environment: dict[str, str], place: Place, files: dict[str, bytes], point: int, answer: Connection
) -> None:
    os.environ.update(environment)  # the server of forks has that of its start
    store = Store(place.data, place.database)
    _watch(point, str(place.data))
    answer.send(commit(store, place, files))
    os._exit(0)


def _watch(point: int, data: str) -> None:
    seen = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name not in POINTS or (name == "open" and not str(arguments[0]).startswith(data)):
            return
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = _around(os.fsync)
    for name in ("put", "copy", "delete", "head"):
        setattr(obstore, name, _around(getattr(obstore, name)))
    event.listen(Engine, "commit", lambda connection: sys.audit("test.point"))
    event.listen(Pool, "checkin", lambda connection, record: sys.audit("test.point"))
    sys.addaudithook(hook)


def _around(call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        sys.audit("test.point")
        result = call(*arguments, **options)
        sys.audit("test.point")
        return result

    return called
