from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from static_hub import StaticHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StaticHub]:
    """A hub on loopback that HF_ENDPOINT names, with an empty cache under tmp_path / "cache"."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH", "LOCAL_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    # What a process remembers of a hub is under its address, and a port may be given twice.
    monkeypatch.setattr("hub_loader.entry._modules", {})
    monkeypatch.setattr("hub_loader.pinned._versions", {})
    with StaticHub() as server:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("KHUB_TRUST_FILE", str(tmp_path / "trust.json"))
        yield server
