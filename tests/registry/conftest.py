"""Databases and object stores that the registry's tests share."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from postgres_server import Postgres

from registry.place import Place


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


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server for the whole run."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and the environment that leads to it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{secrets.token_hex(8)}"
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest) -> str | None:
    """Each kind of storage in turn, empty: None for the data folder."""
    if request.param == "folder":
        return None
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture(params=["folder", "postgres and s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty registry: as one person has it, and as a company has it."""
    if request.param == "folder":
        return Place(tmp_path / "data")
    return Place(
        tmp_path / "data", request.getfixturevalue("postgres_url"), request.getfixturevalue("s3_url")
    )
