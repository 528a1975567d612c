"""Transactions on either database: concurrent writers, what they may do to each other, and lost connections."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgres_server import Postgres
from sqlalchemy import create_engine

from hub_loader.errors import RegistryError, UsageError
from registry.db import database_url
from registry.errors import RequestError
from registry.models import Base
from registry.names import RepoName
from registry.store import Store
from registry.tree import Add, File, blob_oid

REPO = RepoName("acme", "relu")


def adding(path: str, content: bytes = b"x") -> list[Add]:
    return [Add(path, File(blob_oid(content), "0" * 64, len(content)))]


@pytest.fixture
def stores(tmp_path: Path, database: str | None) -> list[Store]:
    """Three processes' worth of stores on one database, with a repository in it."""
    opened = [Store(tmp_path / "data", database) for _ in range(3)]
    assert opened[0].create_repo(REPO, "acme")
    return opened


def test_commits_when_many_write_one_branch_then_each_has_the_one_before_as_parent(
    stores: list[Store],
) -> None:
    def commit(number: int) -> str:
        return stores[number % 3].commit(REPO, "main", adding(f"{number}.txt"), message="m", author="a")

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(commit, range(24)))
    head = stores[0].resolve(REPO, "main")
    paths = {entry.path for entry in stores[0].list_tree(head, "", True, "", 100)}
    assert len(set(made)) == 24 and head.commit in made
    assert paths == {f"{number}.txt" for number in range(24)}  # none was computed on an older head


def test_commits_when_many_insist_on_one_parent_then_one_succeeds(stores: list[Store]) -> None:
    parent = stores[0].resolve(REPO, "main").commit

    def commit(number: int) -> int:
        try:
            stores[number % 3].commit(
                REPO, "main", adding(f"{number}.txt"), message="m", author="a", parent=parent
            )
        except RequestError as error:
            return error.status
        return 200

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(commit, range(12)))
    assert answers == [200] + [412] * 11


def test_branches_when_many_get_the_same_files_then_all_do(stores: list[Store]) -> None:
    files = [add for number in range(50) for add in adding(f"{number}.txt")]
    for number in range(6):
        stores[0].create_branch(REPO, f"b{number}", "main")

    def commit(number: int) -> str:
        return stores[number % 3].commit(REPO, f"b{number}", files, message="m", author="a")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(commit, range(6)))
    assert {stores[0].resolve(REPO, f"b{number}").tree for number in range(6)} == {
        stores[0].resolve(REPO, "b0").tree
    }


def test_create_when_many_do_it_at_once_then_one_is_told_it_is_new(stores: list[Store]) -> None:
    def create(number: int) -> bool:
        return stores[number % 3].create_repo(RepoName("new-org", "kernel"), "a")

    def branch(number: int) -> int:
        try:
            stores[number % 3].create_branch(REPO, "v1", "main")
        except RequestError as error:
            return error.status
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == [False] * 7 + [True]
        assert sorted(pool.map(branch, range(8))) == [200] + [409] * 7


def test_delete_when_the_repository_is_being_written_then_each_write_is_whole_or_refused(
    stores: list[Store],
) -> None:
    def commit(number: int) -> str:
        try:
            return stores[1].commit(REPO, "main", adding(f"{number}.txt"), message="m", author="a")
        except RequestError as error:
            return str(error.status)

    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(commit, number) for number in range(20)]
        stores[0].delete_repo(REPO)
        answers = {write.result() for write in writes}
    assert all(answer == "404" or len(answer) == 40 for answer in answers)


def test_listing_when_paths_have_any_letters_then_order_is_that_of_their_bytes(stores: list[Store]) -> None:
    names = ["b", "B", "a/b", "a-b", "a0", "Z", "é", "_", "𝛼", "ﬀ"]
    stores[0].commit(REPO, "main", [add for name in names for add in adding(name)], message="m", author="a")
    head = stores[0].resolve(REPO, "main")
    listed = [entry.path for entry in stores[0].list_tree(head, "", True, "", 100)]
    assert listed == sorted([*names, "a"], key=str.encode)
    assert [entry.path for entry in stores[0].list_tree(head, "a", True, "", 100)] == ["a/b"]


def test_postgres_when_new_then_the_schema_is_that_of_the_models(tmp_path: Path, postgres_url: str) -> None:
    Store(tmp_path / "data", postgres_url).close()
    with create_engine(database_url(tmp_path, postgres_url)).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_postgres_when_many_open_it_new_then_all_can_use_it(tmp_path: Path, postgres_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Store(tmp_path / "data", postgres_url), range(4)))
    assert [store.has_org("acme") for store in opened] == [False] * 4


def test_postgres_when_it_crashed_and_is_back_then_the_store_goes_on(tmp_path: Path) -> None:
    server = Postgres()
    try:
        server.start()
        store = Store(tmp_path / "data", server.url("hub"))
        store.create_repo(REPO, "acme")
        made = store.commit(REPO, "main", adding("a.txt"), message="m", author="a")
        server.kill()
        server.start()
        assert store.resolve(REPO, "main").commit == made
    finally:
        server.remove()


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://u@h/d", "not an address", ""])
def test_database_when_the_address_is_of_another_kind_then_usage_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="postgresql://"):
        Store(tmp_path / "data", url)


def test_database_when_nothing_listens_there_then_it_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as refused:
        Store(tmp_path / "data", "postgresql://someone:secret@127.0.0.1:1/hub")
    assert "127.0.0.1:1/hub" in str(refused.value) and "secret" not in str(refused.value)
