"""docs/use-a-kernel.md: its commands run in an empty environment, against a hub that has the kernel it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from clean_install import built_kernel, clean_environment, run_script, scripts
from khub_process import StartHub, khub


@pytest.mark.slow
def test_road_of_a_user_from_pip_install_to_offline_runs_as_written(
    start_hub: StartHub, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start_hub(tmp_path / "data")
    package = built_kernel("rmsnorm-rotary", tmp_path / "dist")
    project = tmp_path / "project"
    project.mkdir()
    assert khub("keygen", project / "release.key").returncode == 0
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token("org"))
    published = khub("publish", package, "org/rmsnorm-rotary", "--sign-key", project / "release.key")
    assert published.returncode == 0, published.stderr

    variables = clean_environment(tmp_path, wheel, torch=True)
    load, lock, offline = scripts("use-a-kernel.md", "tests/test_road_use.py")
    printed = run_script(load.replace("https://hub.example.com", hub.url), project, variables)
    assert "chosen" in printed
    assert "torch.Size([4, 64])" in printed
    variables["HF_ENDPOINT"] = hub.url  # the reader's shell is still the same
    assert "verified: org/rmsnorm-rotary version 1" in run_script(lock, project, variables)
    hub.stop()
    assert run_script(offline, project, variables).count("rmsnorm_rotary") >= 2
