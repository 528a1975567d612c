"""A hub with a TUF root, a publisher of an organization of its own, and what a process knows that begins."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from khub_process import StartHub
from tuf_hub import TufHub, new_key
from tuf_mirror import Mirror, mirror_of, state

from hub_loader.config import Config
from hub_loader.trust.tuf_client import add_root

sys.path.insert(0, str(Path(__file__).parents[1] / "hub_loader"))  # packages to publish
sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))  # archives to forge


@pytest.fixture(autouse=True)
def trust_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty trust folder, and no hub that this process has said anything about."""
    monkeypatch.setenv("KHUB_TRUST_FILE", str(tmp_path / "config" / "trust.json"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("hub_loader.trust.tuf_client._said", set())
    return tmp_path / "config"


@pytest.fixture(scope="module")
def hub(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> TufHub:
    folder = tmp_path_factory.mktemp("tuf")
    made = TufHub(start_hub(folder / "data"), folder)
    made.found()
    return made


@pytest.fixture
def org() -> str:
    return f"org{secrets.token_hex(4)}"


@pytest.fixture
def repo(org: str) -> str:
    return f"{org}/demo"


@pytest.fixture
def key(hub: TufHub, org: str, tmp_path: Path) -> Path:
    """The publisher's key, to which the organization is delegated."""
    path = new_key(tmp_path, "publisher")
    hub.delegate(org, path)
    return path


@pytest.fixture
def mirror(hub: TufHub) -> Iterator[Mirror]:
    with mirror_of(hub.url) as mirror:
        add_root(mirror.url, state(hub.url, "nobody")["1.root.json"], "1.root.json")
        yield mirror


@pytest.fixture
def reader(hub: TufHub, mirror: Mirror) -> Config:
    """Somebody who was given the hub's first root and asks the mirror, each time."""
    return replace(hub.config(url=mirror.url), refresh=0.0)
