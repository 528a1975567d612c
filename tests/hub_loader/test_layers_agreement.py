"""Layers as the Hub's own client has them: the same mappings give the same choices, and marks are shared."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PEER = "kernels==0.17.2"
SCENARIOS = 2000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the peer, to be put beside this environment's packages."""
    folder = tmp_path_factory.mktemp("peer")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PEER]
    subprocess.run(pip, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rmsnorm-rotary for the CPU: what KHUB_KERNEL_BUILD holds, else built here."""
    if given := os.environ.get("KHUB_KERNEL_BUILD"):
        return Path(given) / "rmsnorm-rotary"
    out = tmp_path_factory.mktemp("rmsnorm-rotary")
    build = [sys.executable, "-m", "hub_loader", "build", str(ROOT / "kernels_src" / "rmsnorm-rotary")]
    select = ["--select", "torch-stable-abi*-cpu-x86_64-*", "--out", str(out)]
    subprocess.run([*build, *select], check=True, capture_output=True, timeout=300)
    return out


def child(peer: Path, *arguments: object) -> object:
    """What layers_agreement_child.py prints, in a process that has the peer too."""
    program = Path(__file__).with_name("layers_agreement_child.py")
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(peer)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_kernelize_with_random_mappings_chooses_what_the_peer_chooses(peer: Path) -> None:
    seed = os.environ.get("KHUB_TEST_SEED", str(secrets.randbits(31)))
    print(f"KHUB_TEST_SEED={seed}")
    report: Any = child(peer, "agree", seed, SCENARIOS)
    assert report["differing"] == []
    assert report["swapped"] > SCENARIOS / 10
    assert report["refused"] > SCENARIOS / 10


@pytest.mark.parametrize("marker,kernelizer", [("kernels", "hub_loader"), ("hub_loader", "kernels")])
def test_model_marked_by_one_library_is_kernelized_by_the_other(
    peer: Path, package: Path, marker: str, kernelizer: str
) -> None:
    assert child(peer, "cross", marker, kernelizer, package) == [8.0, True]
