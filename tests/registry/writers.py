"""Many who commit at once and remember what they were told, for tests that kill what they commit to."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from crashing import REPO
from observed_hub import commit_body
from shell_tokens import create_token

from registry.place import Place, open_blobs
from registry.store import Store


class Writers:
    """Threads that commit one new file after the other, and know what they were told about each."""

    def __init__(self, token: str) -> None:
        self.url = ""
        self.confirmed: dict[str, bytes] = {}
        self.unknown: dict[str, bytes] = {}
        self.wrong: list[str] = []
        self.headers = {"Authorization": f"Bearer {token}"}

    @contextmanager
    def writing(self, count: int = 4) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._write, args=(stop,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _write(self, stop: threading.Event) -> None:
        while not stop.is_set():
            path, content = f"{secrets.token_hex(4)}/{secrets.token_hex(4)}", secrets.token_bytes(20_000)
            body = commit_body(path, content)
            try:
                url = f"{self.url}/api/kernels/{REPO}/commit/main"
                answer = httpx.post(url, content=body, headers=self.headers, timeout=60)
            except httpx.HTTPError:
                self.unknown[path] = content
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                self.confirmed[path] = content
            else:
                if answer.status_code != 503:
                    self.wrong.append(answer.text)
                self.unknown[path] = content
                time.sleep(0.05)

    def wait_for(self, more: int) -> None:
        """Return when so many more commits are confirmed."""
        goal = len(self.confirmed) + more
        until = time.monotonic() + 120
        while len(self.confirmed) < goal:
            assert time.monotonic() < until, "no commit was confirmed for two minutes"
            time.sleep(0.005)

    def check(self, found: dict[str, bytes]) -> None:
        """Every confirmed file is there; every other one that is there was asked for, and is whole."""
        assert self.wrong == []
        assert self.confirmed.items() <= found.items()
        assert found.items() <= (self.confirmed | self.unknown).items()


def prepared(place: Place) -> Writers:
    """Writers to the repository REPO of a registry at `place`, where nobody serves yet."""
    store = Store(place.data, place.database)
    store.create_repo(REPO, "acme")
    writers = Writers(create_token(store, REPO.org, can_write=True))
    store.close()
    return writers


def arguments(place: Place) -> list[str]:
    """What `khub` is told of the place, beside its data folder."""
    named = {"--database": place.database, "--storage": place.storage}
    return [word for option, value in named.items() if value is not None for word in (option, value)]


def contents(place: Place, store: Store) -> dict[str, bytes]:
    """The files of REPO's main branch by path."""
    blobs = open_blobs(place, store)
    found = store.list_tree(store.resolve(REPO, "main"), "", True, "", 10_000)
    return {entry.path: b"".join(blobs.read(entry.file.sha256)) for entry in found if entry.file}
