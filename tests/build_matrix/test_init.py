"""`khub init`: what it writes builds, loads and passes its own test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from build_matrix.build_toml import read_build_file
from build_matrix.init import create_project
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan
from hub_loader.errors import InvalidKernelError, UsageError


def test_init_build_and_test_of_the_new_project_pass(tmp_path: Path) -> None:
    project = create_project("fused-thing", tmp_path)
    select = "torch-stable-abi210-cpu-*"
    build = [sys.executable, "-m", "hub_loader", "build", ".", "--select", select]
    done = subprocess.run(build, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(tested, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout or "10 passed" in done.stdout  # on a GPU each runs twice
    again = subprocess.run([*build, "--json"], cwd=project, capture_output=True, text=True)
    assert '"reused": true' in again.stdout  # neither dist/ nor what a test leaves is a source


def test_init_renames_every_mention_and_plans_cpu_and_cuda(tmp_path: Path) -> None:
    project = create_project("fused-thing", tmp_path)
    cells, refused = plan(read_build_file(project), read_matrix())
    assert {cell.variant.backend.name for cell in cells} == {"cpu", "cuda"}
    assert all("stable ABI of 2.10, which torch 2." in unbuildable.reason for unbuildable in refused)
    for path in project.rglob("*"):
        assert "my_kernel" not in path.name
        if path.is_file():
            assert "my-kernel" not in path.read_text() and "my_kernel" not in path.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["fused-thing"]


def test_init_over_something_that_exists_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "fused-thing").mkdir()
    with pytest.raises(UsageError, match="exists already: choose another name"):
        create_project("fused-thing", tmp_path)
    assert list((tmp_path / "fused-thing").iterdir()) == []


def test_init_of_a_bad_name_or_place_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidKernelError, match="invalid kernel name 'Fused_Thing'"):
        create_project("Fused_Thing", tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        create_project("fused-thing", tmp_path / "missing")


@pytest.mark.heavy
def test_init_project_compiles_for_cuda(tmp_path: Path) -> None:
    project = create_project("fused-thing", tmp_path)
    build = [sys.executable, "-m", "hub_loader", "build", ".", "--select", "*cu130*"]
    done = subprocess.run(build, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
