"""docs/swap-kernels.md: its commands run in an empty environment beside a checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
from clean_install import built_kernel, clean_environment, run_script, scripts
from khub_process import ROOT, StartHub, khub


@pytest.mark.heavy
def test_road_of_an_engine_from_generate_to_serve_runs_as_written(
    start_hub: StartHub, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = start_hub(tmp_path / "data")
    package = built_kernel("rmsnorm-rotary", tmp_path / "packages")
    checkout = tmp_path / "checkout"
    (checkout / "engine").mkdir(parents=True)
    (checkout / "engine" / "models").symlink_to(
        ROOT / "engine" / "models"
    )  # not the code: the wheel's is what runs
    (checkout / "kernels_src").symlink_to(ROOT / "kernels_src")
    assert khub("keygen", checkout / "release.key").returncode == 0
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token("org"))
    published = khub("publish", package, "org/rmsnorm-rotary", "--sign-key", checkout / "release.key")
    assert published.returncode == 0, published.stderr
    blocks = scripts("swap-kernels.md", "tests/engine/test_road_engine.py")
    variables = clean_environment(tmp_path, wheel, torch=True)
    printed = run_script("\n".join(blocks).replace("https://hub.example.com", hub.url), checkout, variables)
    assert printed.count("org/rmsnorm-rotary") >= 4
    assert '"text_completion"' in printed
