"""Kill -9 of the server and of Postgres: every confirmed commit is there, every other absent or whole."""

from __future__ import annotations

import json
import random
import secrets
import signal
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from crashing import REPO, commit, commit_and_crash
from khub_process import Hub, StartHub, khub
from postgres_server import Postgres
from writers import arguments, contents, prepared

from registry.clock import utc_now
from registry.collect import collect
from registry.fsck import fsck
from registry.place import Place, open_blobs
from registry.store import Store


@pytest.mark.slow
def test_commit_when_killed_at_any_point_then_it_is_whole_or_absent_and_whole_if_it_was_confirmed(
    place: Place,
) -> None:
    store = Store(place.data, place.database)
    store.create_repo(REPO, "acme")
    before = {"kept": b"kept", "replaced": b"old"}
    commit(store, place, before)
    outcomes = {"absent": 0, "whole": 0}
    crashed, point = True, 0
    while crashed:
        point += 1
        new = {"replaced": secrets.token_bytes(100), "new/large": secrets.token_bytes(200_000)}
        head = store.resolve(REPO, "main").commit
        crashed, confirmed = commit_and_crash(place, new, point)
        now = contents(place, store)
        if store.resolve(REPO, "main").commit == head:
            assert confirmed is None and now == before
            outcomes["absent"] += 1
        else:
            assert now == before | new
            outcomes["whole"] += 1
        before = now
        assert fsck(store, open_blobs(place, store)).problems == ()
    assert confirmed == store.resolve(REPO, "main").commit
    assert outcomes["absent"] >= 10 and outcomes["whole"] >= 2  # the points are where things happen
    blobs = open_blobs(place, store)
    blobs.clear_temporary()
    assert [path for path in (place.data / "tmp").rglob("*") if path.is_file()] == []
    collect(store, blobs, utc_now())
    assert collect(store, blobs, utc_now() + timedelta(days=2)).deleted > 0
    used = {
        entry.file.sha256
        for entry in store.list_tree(store.resolve(REPO, "main"), "", True, "", 9)
        if entry.file
    }
    assert used <= {name for name, _ in blobs.storage.names()}
    assert fsck(store, blobs).problems == ()


def kill_servers(start_hub: StartHub, place: Place, rounds: int) -> None:
    writers = prepared(place)
    hub: Hub = start_hub(place.data, *arguments(place))
    writers.url = hub.url
    with writers.writing():
        for _ in range(rounds):
            writers.wait_for(random.randint(1, 12))
            hub.stop(signal.SIGKILL)
            hub = start_hub(place.data, *arguments(place))
            writers.url = hub.url
        writers.wait_for(4)
    store = Store(place.data, place.database)
    writers.check(contents(place, store))
    assert fsck(store, open_blobs(place, store)).problems == ()
    assert hub.stop() == 0


@pytest.mark.slow
def test_server_when_killed_while_many_write_then_what_it_confirmed_is_there(
    start_hub: StartHub, place: Place
) -> None:
    kill_servers(start_hub, place, rounds=1)


@pytest.mark.heavy
def test_server_when_killed_again_and_again_then_what_it_confirmed_is_there(
    start_hub: StartHub, place: Place
) -> None:
    kill_servers(start_hub, place, rounds=15)


def kill_postgres(start_hub: StartHub, data: Path, rounds: int) -> None:
    server = Postgres()
    try:
        server.start()
        place = Place(data, server.url("hub"))
        writers = prepared(place)
        hub: Hub = start_hub(place.data, *arguments(place))
        writers.url = hub.url
        with writers.writing():
            for _ in range(rounds):
                writers.wait_for(random.randint(1, 12))
                server.kill()
                answer = httpx.get(f"{hub.url}/api/kernels/{REPO}")
                assert answer.status_code == 503 and "database does not answer" in answer.json()["error"]
                server.start()
            writers.wait_for(4)  # through the same server, which was not restarted
        store = Store(place.data, place.database)
        writers.check(contents(place, store))
        assert fsck(store, open_blobs(place, store)).problems == ()
        store.close()
        assert hub.stop() == 0
        checked = khub("registry", "fsck", "--data", data, *arguments(place), "--json")
        assert json.loads(checked.stdout)["problems"] == []
    finally:
        server.remove()


@pytest.mark.slow
def test_postgres_when_killed_while_many_write_then_what_was_confirmed_is_there(
    start_hub: StartHub, tmp_path: Path
) -> None:
    kill_postgres(start_hub, tmp_path / "data", rounds=1)


@pytest.mark.heavy
def test_postgres_when_killed_again_and_again_then_what_was_confirmed_is_there(
    start_hub: StartHub, tmp_path: Path
) -> None:
    kill_postgres(start_hub, tmp_path / "data", rounds=15)
