"""docs/run-a-hub.md: a hub from its first start to its first upgrade, in an empty environment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from clean_install import clean_environment, run_script, scripts
from khub_process import ROOT

sys.path.insert(0, str(ROOT / "tests" / "hub_loader"))
from packages import python_package

PLACES = ("postgresql://khub:secret@db.example/hub", "s3://kernels/hub")


@pytest.mark.heavy
def test_road_of_an_operator_from_serve_to_upgrade_runs_as_written(
    wheel: Path, tmp_path: Path, postgres_url: str, s3_url: str
) -> None:
    python_package(tmp_path / "dist" / "fused-thing", name="fused-thing", kernel_id="_fused_thing_cpu_1")
    variables = clean_environment(tmp_path, wheel, torch=True)
    *road, upgrade = scripts("run-a-hub.md", "tests/registry/test_road_hub.py")
    road_script = "\n".join(road)  # one shell, as the reader's: servers run on, variables stay
    for written, ours in zip(PLACES, (postgres_url, s3_url), strict=True):
        road_script = road_script.replace(written, ours)
    printed = run_script(road_script, tmp_path, variables)
    assert len(re.findall(r": 0 problems\.", printed)) == 2
    assert ": 0 problems." in run_script(upgrade, tmp_path, variables)
