"""The schema's history: new databases, those of older programs, those of newer ones."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from hub_loader.errors import RegistryError
from registry import migrations
from registry.models import Base
from registry.names import RepoName
from registry.store import Store

OLD_SCHEMA = Path(__file__).with_name("schema-1.sql").read_text()


def old_folder(data: Path) -> Path:
    """A data folder as programs left it before there were migrations, with one commit of no files."""
    data.mkdir()
    with sqlite3.connect(data / "registry.sqlite") as database:
        database.executescript(OLD_SCHEMA)
        database.execute("INSERT INTO orgs VALUES (1, 'acme')")
        database.execute("INSERT INTO repos VALUES (1, 1, 'relu', '2026-01-02 03:04:05.000000')")
        commit = (1, "a" * 40, None, "b" * 40, "acme", "first", "2026-01-02 03:04:05.000000")
        database.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?)", commit)
        database.execute("INSERT INTO refs VALUES (1, 'heads/main', ?)", ("a" * 40,))
    database.close()
    return data


def differences(url: str) -> list[object]:
    with create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection)
        return list(compare_metadata(context, Base.metadata))


def test_migrations_when_listed_then_they_are_one_line_of_numbers() -> None:
    with create_engine("sqlite://").connect() as connection:
        script = ScriptDirectory.from_config(migrations.configuration(connection))
    assert [found.revision for found in script.walk_revisions()] == migrations.revisions()[::-1]
    assert script.get_heads() == [migrations.head()]


def test_store_when_new_then_the_schema_is_that_of_the_models(tmp_path: Path) -> None:
    Store(tmp_path / "data").close()
    assert differences(f"sqlite:///{tmp_path}/data/registry.sqlite") == []


def test_store_when_the_folder_is_older_than_migrations_then_it_is_adopted_with_its_content(
    tmp_path: Path,
) -> None:
    store = Store(old_folder(tmp_path / "data"))
    assert store.resolve(RepoName("acme", "relu"), "main").commit == "a" * 40
    store.close()
    assert differences(f"sqlite:///{tmp_path}/data/registry.sqlite") == []
    Store(tmp_path / "data").close()  # again: nothing to do


def test_store_when_two_migrate_at_once_then_both_can_use_it(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store, [old_folder(tmp_path / "data")] * 4))
    for store in stores:
        assert store.resolve(RepoName("acme", "relu"), "main").commit == "a" * 40
        store.close()


@pytest.mark.parametrize(
    "change", ["PRAGMA user_version = 99", "UPDATE alembic_version SET version_num = '9999'"]
)
def test_store_when_written_by_a_newer_program_then_refused_and_left_alone(
    tmp_path: Path, change: str
) -> None:
    data = tmp_path / "data"
    if "PRAGMA" in change:
        old_folder(data)
    else:
        Store(data).close()
    with sqlite3.connect(data / "registry.sqlite") as database:
        database.execute(change)
    database.close()
    with pytest.raises(RegistryError, match="another version"):
        Store(data)
    engine = create_engine(f"sqlite:///{data}/registry.sqlite")
    assert inspect(engine).has_table("alembic_version") == ("PRAGMA" not in change)


def test_store_when_a_migration_fails_then_nothing_of_it_stays(tmp_path: Path) -> None:
    data = old_folder(tmp_path / "data")
    with sqlite3.connect(data / "registry.sqlite") as database:
        database.execute("INSERT INTO repos VALUES (2, 77, 'lost', '2026-01-02 03:04:05.000000')")
    database.close()
    with pytest.raises(RegistryError, match="'repos'"):
        Store(data)
    with sqlite3.connect(data / "registry.sqlite") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    database.close()
    assert "alembic_version" not in names
