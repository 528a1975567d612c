"""What a newcomer types wrongly, and what `khub` answers: the cure, once."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from khub_process import ROOT, Hub, khub

from hub_loader.cli import main

sys.path.insert(0, str(ROOT / "tests" / "hub_loader"))
from packages import python_package


def test_version_of_khub_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"khub {version('kernel-hub')}\n"


def test_trust_add_of_a_file_that_is_not_there_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["trust", "add", "org", str(tmp_path / "release.key.pub")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_lock_outside_of_a_project_says_what_to_write(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["lock", str(tmp_path)]) == 25
    assert re.search(r'there is no .*pyproject\.toml: .*"org/name" = 1', capsys.readouterr().err)


def test_init_suggests_a_first_build_of_one_variant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "fused-thing"]) == 0
    assert "khub build . --select 'torch-stable-*-cpu-" in capsys.readouterr().out


def test_publish_with_a_token_that_the_hub_does_not_know_names_the_cure_once(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = python_package(tmp_path / "package", name="fused-thing", kernel_id="_fused_thing_cpu_1")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "khub_unknown")
    refused = khub("publish", package.folder, "newcomer/fused-thing")
    assert refused.returncode == 17
    assert refused.stderr.count("HF_TOKEN") == 1
