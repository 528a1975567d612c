"""Databases and object stores that the registry's tests share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from postgres_server import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres server for the whole run: take a database of your own."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty Postgres database."""
    return postgres.url(f"t{secrets.token_hex(8)}")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Each kind of database in turn, empty: None for the file in the data folder."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres_url")
    return url
