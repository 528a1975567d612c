"""The wheel, as a user installs it: nothing but the Hub's client and `packaging` beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_bare_install_has_khub_and_says_what_each_part_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools builds in the tree it is given
    run("git", "clone", "--quiet", ROOT, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("kernel_hub-*.whl")
    members = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "build_matrix/matrix.toml",
        "build_matrix/toolchain/fatbinary.sh",
        "build_matrix/include/registration.h",
        "hub_loader/py.typed",
        "registry/migrations/env.py",
        "registry/migrations/versions/0001_baseline.py",
        "registry/pages/static/khub.css",
        "registry/pages/templates/base.html",
    } <= members
    assert not any(name.startswith(("tests/", "kernels_src/")) for name in members)

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    khub = tmp_path / "venv" / "bin" / "khub"
    run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", wheel)
    code = "from importlib.metadata import requires; print([r for r in requires('kernel-hub') if 'extra' not in r])"
    assert run(python, "-c", code).stdout.strip() == "['huggingface_hub>=1.10', 'packaging>=23']"
    run(python, "-m", "pip", "check")
    assert "torch" in run(khub, "env").stdout
    for command, extra in (("build", "build"), ("serve", "registry"), ("engine", "engine")):
        refused = run(khub, command, "--help", code=0 if command == "engine" else 50)
        assert command == "engine" or f"pip install 'kernel-hub[{extra}]'" in refused.stderr
    assert (
        "kernel-hub[engine]"
        in run(khub, "engine", "generate", "--model", tmp_path, "--prompt", "x", code=50).stderr
    )
