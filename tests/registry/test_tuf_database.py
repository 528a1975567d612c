"""TUF metadata in either database: servers that race, failures in the middle, kill -9."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from khub_process import StartHub
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp
from tuf_hub import TufHub, index_of, new_key

from hub_loader.errors import KernelHubError, RegistryError, UsageError
from hub_loader.trust.keys import generate
from hub_loader.trust.tuf_keys import signer_of
from registry.errors import RequestError
from registry.store import Store
from registry.tuf import ceremony, roles
from registry.tuf.ceremony import Draft
from registry.tuf.repository import TufRepository

ORG = "acme"


@pytest.fixture
def open_repository(tmp_path: Path, database: str | None) -> Callable[[], TufRepository]:
    """Opens the repository as one more server would; the first ceremony is done and `acme` delegated."""

    def opened() -> TufRepository:
        return TufRepository(Store(tmp_path, database), tmp_path)

    repository = opened()
    repository.apply(first_drafts(repository))
    return opened


def first_drafts(repository: TufRepository) -> list[Draft]:
    """The first root and targets, with online keys of the repository's, signed."""
    operator = signer_of(OPERATOR)
    keys = {role: roles.Keys([operator.public_key]) for role in ceremony.OFFLINE}
    keys |= {role: roles.Keys([repository.keys.create()]) for role in roles.ONLINE}
    root = roles.first_root(keys, roles.Lifetimes(), roles.now())
    targets = roles.first_targets(roles.Lifetimes(), roles.now())
    roles.delegate(targets.signed, ORG, roles.Keys([signer_of(PUBLISHER).public_key]))
    for draft in (root, targets):
        ceremony.sign_draft(draft, operator)
    return [root, targets]


OPERATOR, PUBLISHER = generate(), generate()


def role(version: int) -> bytes:
    path = f"{ORG}/demo/v{version}/index.json"
    file = TargetFile(1, {"sha256": f"{version:064x}"}, path, {"custom": {"commit": "0" * 40}})
    metadata = Metadata(Targets(version, expires=roles.now() + timedelta(days=9), targets={path: file}))
    metadata.sign(signer_of(PUBLISHER))
    return metadata.to_bytes()


def check_whole(repository: TufRepository) -> int:
    """Every file of the bundle is what the one above says; returns the organization's version."""
    files = {name: data.encode() for name, data in repository.bundle(ORG, 0).items()}
    timestamp = Metadata[Timestamp].from_bytes(files["timestamp.json"]).signed
    data = files[f"{timestamp.snapshot_meta.version}.snapshot.json"]
    timestamp.snapshot_meta.verify_length_and_hashes(data)
    snapshot = Metadata[Snapshot].from_bytes(data).signed
    for name, meta in snapshot.meta.items():
        meta.verify_length_and_hashes(files[f"{meta.version}.{name}"])
    found = snapshot.meta.get(f"org.{ORG}.json")
    return found.version if found else 0


def test_first_ceremonies_when_held_at_once_then_one_is_and_the_others_are_told(
    tmp_path: Path, database: str | None
) -> None:
    operators = [TufRepository(Store(tmp_path, database), tmp_path) for _ in range(4)]
    drafts = [first_drafts(operator) for operator in operators]
    barrier = threading.Barrier(4)

    def hold(number: int) -> bool:
        barrier.wait()
        try:
            operators[number].apply(drafts[number])
        except UsageError as error:
            assert "2 is next: draft it again" in str(error)
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(hold, range(4))) == 1
    assert check_whole(operators[0]) == 0


def test_servers_that_publish_and_refresh_at_once_leave_one_line_of_versions(
    open_repository: Callable[[], TufRepository],
) -> None:
    servers = [open_repository() for _ in range(4)]
    accepted, failed = [], []

    def publish(repository: TufRepository) -> None:
        done = 0
        while done < 3:
            try:
                accepted.append(repository.publish(ORG, role(check_whole(repository) + 1), lambda *_: None))
                done += 1
                repository.refresh(force=True)
            except RequestError as error:
                if error.status != 412:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=publish, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and sorted(accepted) == list(range(1, 13))
    assert check_whole(servers[0]) == 12
    versions = {status.role: status.version for status in servers[0].status()}
    assert (versions["snapshot"], versions["timestamp"]) == (
        25,
        25,
    )  # one ceremony, 12 publications, 12 refreshes


def test_publication_that_cannot_be_signed_over_changes_nothing(
    open_repository: Callable[[], TufRepository], tmp_path: Path
) -> None:
    repository = open_repository()
    assert repository.publish(ORG, role(1), lambda *_: None) == 1
    before = repository.bundle(ORG, 0)
    for path in (tmp_path / "trust").iterdir():
        path.rename(path.with_suffix(".away"))
    with pytest.raises(RegistryError, match="nor in KHUB_ONLINE_KEYS"):
        repository.publish(ORG, role(2), lambda *_: None)
    assert repository.bundle(ORG, 0) == before and check_whole(repository) == 1


def test_online_keys_come_from_the_environment_where_there_are_no_files(
    open_repository: Callable[[], TufRepository], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list((tmp_path / "trust").iterdir())
    monkeypatch.setenv("KHUB_ONLINE_KEYS", "\n".join(path.read_text() for path in files))
    for path in files:
        path.unlink()
    assert open_repository().refresh(force=True)


@pytest.mark.slow
def test_server_that_is_killed_while_it_publishes_shows_a_whole_state(
    start_hub: StartHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KHUB_TRUST_FILE", str(tmp_path / "trust.json"))
    hub = TufHub(start_hub(tmp_path / "data"), tmp_path)
    hub.found()
    key = new_key(tmp_path, "publisher")
    hub.delegate(ORG, key)
    commit = hub.publish(f"{ORG}/demo", key, index_of(1))
    acknowledged = 1
    for _ in range(3):
        acknowledged = max([acknowledged, *kill_while_publishing(hub, key, commit)])
        hub.hub = start_hub(tmp_path / "data")
        shown = check_whole(TufRepository(Store(tmp_path / "data"), tmp_path / "data"))
        assert shown in (
            acknowledged,
            acknowledged + 1,
        )  # an answer may be lost, an acknowledged version never
        acknowledged = shown
        reader = hub.publisher(ORG, key)
        assert set(reader.targets()) == {f"{ORG}/demo/v1/index.json"}


def kill_while_publishing(hub: TufHub, key: Path, commit: str) -> list[int]:
    """Publish one version after the other until the server, killed in the middle, is gone; those acknowledged."""
    publisher, versions, stop = hub.publisher(ORG, key), [], threading.Event()

    def publish() -> None:
        with suppress(KernelHubError):  # the server is gone
            while not stop.is_set():
                done = publisher.yank(f"{ORG}/demo", 1, commit, f"reason at {time.time()}")
                assert done is not None
                versions.append(done)

    thread = threading.Thread(target=publish)
    thread.start()
    time.sleep(1 + random.random())
    hub.hub.process.kill()
    hub.hub.process.wait()
    stop.set()
    thread.join()
    return versions
