"""Fixtures of the scenarios: a registry behind a relay, packages, and each client in turn."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from khub_process import Hub

sys.path.insert(0, str(Path(__file__).parents[1] / "hub_loader"))
from clients import Client, Shelf
from packages import Package, python_package
from relay import Relay

STOCK = ("kernels==0.17.2", "huggingface_hub==2.4.0")  # with which docs/defects.md was measured
_numbers = itertools.count()


@pytest.fixture(scope="session")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes, once, a venv with the stock client and without torch; returns its interpreter."""
    made: list[Path] = []

    def make() -> Path:
        if not made:
            venv = tmp_path_factory.mktemp("stock") / "venv"
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *STOCK], check=True)
            made.append(venv / "bin/python")
        return made[0]

    return make


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
    stock_python: Callable[[], Path],
) -> Client:
    """This loader, then stock `kernels`."""
    folder = tmp_path / "project"
    folder.mkdir()
    python = Path(sys.executable) if request.param == "ours" else stock_python()
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
