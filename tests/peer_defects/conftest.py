"""Fixtures of the scenarios: a registry behind a relay, packages, and each client in turn."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from khub_process import Hub

sys.path.insert(0, str(Path(__file__).parents[1] / "hub_loader"))
from clients import Client, Shelf
from packages import Package, python_package
from relay import Relay

_numbers = itertools.count()


@pytest.fixture
def relay(hub: Hub) -> Iterator[Relay]:
    with Relay(hub.url) as server:
        yield server


@pytest.fixture
def shelf(hub: Hub, relay: Relay) -> Shelf:
    return Shelf(hub, relay)


@pytest.fixture(params=["ours", pytest.param("peer", marks=pytest.mark.slow)])
def client(
    request: pytest.FixtureRequest,
    relay: Relay,
    tmp_path: Path,
) -> Client:
    """This loader, then stock `kernels`."""
    folder = tmp_path / "project"
    folder.mkdir()
    python = Path(sys.executable) if request.param == "ours" else request.getfixturevalue("stock_python")
    return Client(request.param, python, folder, relay.url)


@pytest.fixture
def org() -> str:
    """An organization that no other test has."""
    return f"org{next(_numbers)}"


@pytest.fixture
def plain(tmp_path: Path) -> Callable[..., Package]:
    """Makes packages that fit every environment, without the index that the stock client does not know."""

    def make(value: int = 1, **options: object) -> Package:
        options = {"variants": ("torch-universal",), "has_index": False} | options
        folder = tmp_path / f"package{next(_numbers)}"
        return python_package(folder, value=value, **options)  # type: ignore[arg-type]

    return make
