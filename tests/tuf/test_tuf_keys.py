"""The server's own keys: kept apart from backups, brought back after a restore."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from khub_process import StartHub
from tuf_hub import TufHub, new_key

from hub_loader.cli import main
from registry.store import Store
from registry.tuf.repository import TufRepository


@pytest.fixture(scope="module")
def own(start_hub: StartHub, tmp_path_factory: pytest.TempPathFactory) -> TufHub:
    """A TUF repository of its own, whose server is stopped."""
    folder = tmp_path_factory.mktemp("own")
    made = TufHub(start_hub(folder / "data"), folder)
    made.found()
    made.hub.stop()
    return made


def khub(*arguments: object) -> int:
    return main([*map(str, arguments)])


def trust(verb: str, data: Path, *arguments: object) -> int:
    return khub("registry", "trust", verb, "--data", data, *arguments)


def restored(own: TufHub, tmp_path: Path) -> Path:
    backup, data = tmp_path / "b.tar", tmp_path / "restored"
    assert khub("registry", "backup", "--data", own.hub.data, backup) == 0
    assert b"PRIVATE KEY" not in backup.read_bytes()
    assert khub("registry", "restore", "--data", data, backup) == 0
    return data


def test_backup_when_restored_then_the_keys_that_are_not_in_it_are_asked_for_and_brought_back(
    own: TufHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.pem"
    assert trust("save-keys", own.hub.data, keys) == 0
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600 and keys.read_text().count("BEGIN PRIVATE KEY") == 2
    capsys.readouterr()
    data = restored(own, tmp_path)
    assert (
        "signs snapshot and timestamp is not here: `khub registry trust load-keys" in capsys.readouterr().out
    )
    assert trust("refresh", data, "--force") == 30
    assert trust("load-keys", data, keys) == 0
    assert trust("refresh", data, "--force") == 0
    before = TufRepository(Store(own.hub.data), own.hub.data).file("timestamp", None)
    after = TufRepository(Store(data), data).file("timestamp", None)
    assert json.loads(after)["signed"]["version"] == json.loads(before)["signed"]["version"] + 1
    assert {path.name for path in (data / "trust").iterdir()} == {
        path.name for path in (own.hub.data / "trust").iterdir()
    }


def test_keys_when_saved_with_a_passphrase_then_nobody_loads_them_without_it(
    own: TufHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.pem"
    monkeypatch.setenv("KHUB_KEY_PASSPHRASE", "correct horse")
    assert trust("save-keys", own.hub.data, keys) == 0
    assert "ENCRYPTED" in keys.read_text()
    data = restored(own, tmp_path)
    monkeypatch.setenv("KHUB_KEY_PASSPHRASE", "wrong")
    assert trust("load-keys", data, keys) == 2
    monkeypatch.setenv("KHUB_KEY_PASSPHRASE", "correct horse")
    assert trust("load-keys", data, keys) == 0
    assert trust("refresh", data, "--force") == 0


def test_keys_when_the_file_is_another_or_open_to_others_or_there_already_then_refused(
    own: TufHub, tmp_path: Path
) -> None:
    stranger = new_key(tmp_path, "stranger")
    assert trust("load-keys", own.hub.data, stranger) == 2
    assert not (own.hub.data / "trust" / "stranger.pem").exists()
    keys = tmp_path / "keys.pem"
    assert trust("save-keys", own.hub.data, keys) == 0
    assert trust("save-keys", own.hub.data, keys) == 2
    keys.chmod(0o644)
    assert trust("load-keys", own.hub.data, keys) == 2
    assert trust("save-keys", tmp_path / "no hub", tmp_path / "x.pem") == 2
