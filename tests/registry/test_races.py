"""Two who change the same thing at once on Postgres: one is first, the other is told so and nothing fails.

The first is a transaction of the test's own, which holds what the second needs until that waits for it.
"""

from __future__ import annotations

import secrets
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TypeVar

import httpx
import psycopg
import pytest
from khub_process import Hub, StartHub, khub
from observed_hub import commit_body
from postgres_server import Postgres
from shell_tokens import create_token

from hub_loader.errors import RegistryError, UsageError
from registry.accounts.audit import shell
from registry.accounts.command_parts import changing
from registry.accounts.directory import add_org, add_user, list_orgs, list_users, set_role
from registry.accounts.identity import Role
from registry.accounts.settings import change_settings
from registry.downloads import Downloads
from registry.names import RepoName
from registry.store import Store

pytestmark = pytest.mark.slow

T = TypeVar("T")


class Shared:
    """A server on a Postgres database, who writes to it, and the database. `name`: a repository of acme."""

    def __init__(self, hub: Hub, url: str, secret: str) -> None:
        self.url, self.name = url, ""
        self.web = httpx.Client(
            base_url=hub.url,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=60,
            follow_redirects=False,
        )

    @property
    def repo(self) -> str:
        """Where the repository is in the API."""
        return f"/api/kernels/acme/{self.name}"

    def create(self) -> None:
        """A new repository."""
        self.name = f"r{secrets.token_hex(4)}"
        body = {"organization": "acme", "name": self.name, "type": "kernel"}
        assert self.web.post("/api/repos/create", json=body).status_code == 200

    def move(self, old: str, new: str) -> httpx.Response:
        names = {"fromRepo": f"acme/{old}", "toRepo": f"acme/{new}", "type": "kernel"}
        return self.web.post("/api/repos/move", json=names)

    def after(self, first: str, second: Callable[[], httpx.Response]) -> httpx.Response:
        """As below; RELU is the repository."""
        return after(self.url, first.replace("RELU", self.name), second)


def after(url: str, first: str, second: Callable[[], T]) -> T:
    """The result of `second`, which has to wait for the statements `first`, committed once it does."""
    with psycopg.connect(url) as blocker, ThreadPoolExecutor(1) as pool:
        for statement in first.split(";"):
            blocker.execute(statement.encode())
        result = pool.submit(second)
        until_one_waits(url)
        blocker.commit()
        return result.result()


def until_one_waits(url: str) -> None:
    waiting = b"""SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    with psycopg.connect(url, autocommit=True) as looker:
        for _ in range(600):
            row = looker.execute(waiting).fetchone()
            if row is not None and row[0]:
                return
            time.sleep(0.05)
    raise AssertionError("nobody waits")


@pytest.fixture(scope="module")
def server(
    start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory, postgres: Postgres
) -> Iterator[Shared]:
    data, url = tmp_path_factory.mktemp("races"), postgres.url("races")
    hub = start_hub(data, "--database", url)
    command = ("registry", "token", "create", "--data", data, "--database", url, "--org", "acme")
    made = khub(*command, "--scope", "admin")
    assert made.returncode == 0, made.stderr
    found = Shared(hub, url, made.stdout.splitlines()[-1])
    yield found
    found.web.close()
    assert hub.stop() == 0


@pytest.fixture
def shared(server: Shared) -> Shared:
    server.create()
    return server


@pytest.fixture
def store(tmp_path: Path, postgres_url: str) -> Iterator[Store]:
    opened = Store(tmp_path / "data", postgres_url)
    yield opened
    opened.close()


NEW_REPO = """INSERT INTO repos (org_id, name, created_at, private)
    SELECT org_id, 'gelu', created_at, false FROM repos WHERE name = 'RELU'"""


RENAMED = """UPDATE repos SET name = 'tanh' WHERE name = 'RELU';
    INSERT INTO repo_moves SELECT 'acme', 'RELU', id FROM repos WHERE name = 'tanh'"""


def test_changes_of_names_when_another_is_faster_then_409_or_404_and_never_500(shared: Shared) -> None:
    moved = shared.after(NEW_REPO, lambda: shared.move(shared.name, "gelu"))
    assert (moved.status_code, moved.headers["x-error-code"]) == (409, "Conflict"), moved.text
    moved = shared.after(RENAMED, lambda: shared.move(shared.name, "silu"))
    assert moved.status_code == 404 and "acme/tanh" in moved.json()["error"], moved.text
    # A former name that is still written down is written over.
    with psycopg.connect(shared.url) as database:
        database.execute("INSERT INTO repo_moves SELECT 'acme', 'tanh', id FROM repos WHERE name = 'gelu'")
    assert shared.move("tanh", "silu").status_code == 200
    assert shared.web.get("/api/kernels/acme/tanh").headers["location"].endswith("/api/kernels/acme/silu")


def test_change_of_a_repository_when_it_is_deleted_meanwhile_then_409(shared: Shared) -> None:
    tag = f"{shared.repo}/tag/main"
    gone = shared.after(
        "DELETE FROM repos WHERE name = 'RELU'", lambda: shared.web.post(tag, json={"tag": "v1"})
    )
    assert (gone.status_code, gone.headers["x-error-code"]) == (409, "Conflict"), gone.text
    assert shared.web.post(tag, json={"tag": "v1"}).status_code == 404


@pytest.mark.parametrize("how", ["ask", "grant"])
def test_access_when_asked_for_and_granted_at_once_then_there_is_one_entry(shared: Shared, how: str) -> None:
    repo = shared.repo
    assert shared.web.put(f"{repo}/settings", json={"gated": "manual"}).status_code == 200
    first = """INSERT INTO repo_access (repo_id, account, status, created_at)
        SELECT id, 'acme', 'pending', created_at FROM repos WHERE name = 'RELU'"""

    def second() -> httpx.Response:
        if how == "ask":
            return shared.web.post(f"/kernels/acme/{shared.name}/ask-access", json={})
        return shared.web.post(f"{repo}/user-access-request/grant", json={"user": "acme"})

    answer = shared.after(first, second)
    assert answer.status_code == 200, answer.text
    state = "pending" if how == "ask" else "accepted"
    listed = shared.web.get(f"{repo}/user-access-request/{state}").json()
    assert [entry["requestId"] for entry in listed] == ["acme"]


def test_pull_requests_when_opened_at_once_then_each_has_a_number_of_its_own(shared: Shared) -> None:
    repo = shared.repo
    for number in range(3):
        assert shared.web.post(f"{repo}/branch/b{number}", json={}).status_code == 200

    def opened(number: int) -> int:
        address = f"{repo}/commit/b{number % 3}?create_pr=1"
        return shared.web.post(address, content=commit_body(f"{number}", b"x")).status_code

    with ThreadPoolExecutor(9) as pool:
        assert [*pool.map(opened, range(9))] == [200] * 9
    listed = shared.web.get(f"{repo}/discussions").json()["discussions"]
    assert sorted(pull["num"] for pull in listed) == [*range(1, 10)]


def test_names_when_taken_at_once_in_every_case_then_one_is_given(store: Store) -> None:
    names = ["acme", "Acme", "ACME", "aCME"]
    barrier = threading.Barrier(2 * len(names))

    def take(number: int) -> bool:
        name = names[number // 2]
        barrier.wait()
        try:
            with store.write() as session:
                if number % 2:
                    add_org(session, shell(), name)
                else:
                    add_user(session, shell(), name)
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(2 * len(names)) as pool:
        assert sum(pool.map(take, range(2 * len(names)))) == 1
    with store.read() as session:
        assert len([*list_orgs(session), *list_users(session)]) == 1


def test_command_when_what_it_changes_is_removed_meanwhile_then_it_says_so(
    store: Store, tmp_path: Path, postgres_url: str
) -> None:
    with store.write() as session:
        add_org(session, shell(), "acme")
        add_user(session, shell(), "ada")

    def command() -> None:
        with changing(Namespace(data=tmp_path / "data", database=postgres_url)) as session:
            set_role(session, shell(), "acme", "ada", Role.WRITER)

    with pytest.raises(RegistryError, match="at this moment"):
        after(postgres_url, "DELETE FROM users WHERE name = 'ada'", command)


def test_what_is_there_or_is_not_when_written_at_once_then_all_of_it_counts(store: Store) -> None:
    store.create_repo(RepoName("acme", "relu"), "acme")
    repo_id = store.repo(RepoName("acme", "relu")).repo_id
    with store.write() as session:
        add_user(session, shell(), "ada")
    barrier = threading.Barrier(8)

    def change(number: int) -> None:
        counts = Downloads()
        for _ in range(5):
            counts.fetched(repo_id, "build/x/metadata.json", None)
        barrier.wait()
        counts.flush(store)
        with store.write() as session:
            set_role(session, shell(), "acme", "ada", Role.WRITER)
        with store.write() as session:
            change_settings(session, shell(), {"burst": float(number + 1)})
        create_token(store, "acme", can_write=False)

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(change, range(8))] == [None] * 8
    with psycopg.connect(str(store._url.set(drivername="postgresql").render_as_string(False))) as database:
        row = database.execute("SELECT sum(count), max(day) FROM downloads").fetchone()
    assert row == (40, date.today())
