"""Python-only kernels: a variant for each backend, without a library, whose operators Python registers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from build_matrix.build_toml import read_build_file
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan
from hub_loader.manifest import parse_index, parse_metadata

TINY = Path(__file__).parent / "kernels" / "tiny-noarch"
LOAD = """
import sys, torch
from hub_loader import get_local_kernel
kernel = get_local_kernel(sys.argv[1], backend="cpu")
assert torch.equal(kernel.scale(torch.ones(2)), torch.full((2,), 3.0))
print(kernel.op.scale._qualname)
"""


def test_plan_of_a_python_only_kernel_has_a_cell_for_every_backend_and_refuses_none() -> None:
    cells, refused = plan(read_build_file(TINY), read_matrix())
    assert {str(cell): cell.capabilities for cell in cells} == {
        "torch-cpu": (),
        "torch-cuda": ("9.0",),
        "torch-rocm": ("gfx942",),
        "torch-npu": (),
    }
    assert refused == []


def test_build_of_a_python_only_kernel_needs_no_toolchain_and_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub_loader", "build", str(TINY), "--out", str(tmp_path / "package")]
    environment = {
        "PATH": "/usr/bin:/bin",
        "KHUB_TOOLCHAINS": str(tmp_path / "toolchains"),
        "PYTHONPATH": _tree(),
    }
    built = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    assert not list((tmp_path / "toolchains").glob("*"))
    index = parse_index((tmp_path / "package" / "index.json").read_bytes(), origin="index.json")
    for name, variant in index.variants.items():
        folder = tmp_path / "package" / "build" / name
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert files == {
            "__init__.py",
            "_ops.py",
            "data/factor.json",
            "metadata.json",
            "op.py",
            "tiny_noarch/__init__.py",
        }
        assert f"torch.ops.{variant.id}" in (folder / "_ops.py").read_text()
        metadata = parse_metadata((folder / "metadata.json").read_bytes(), origin=name)
        backend = {"npu": "cann"}.get(name.removeprefix("torch-"), name.removeprefix("torch-"))
        assert (metadata.version, metadata.backend.type) == (2, backend)
        assert metadata.python_depends == (("packaging", "numpy") if backend == "cuda" else ("packaging",))
    load = [sys.executable, "-c", LOAD, str(tmp_path / "package")]
    loaded = subprocess.run(load, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == f"{index.variants['torch-cpu'].id}::scale"


def test_build_of_a_python_only_kernel_again_changes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub_loader", "build", str(TINY), "--out", str(tmp_path), "--json"]
    json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    before = (tmp_path / "index.json").read_bytes()
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "index.json").read_bytes() == before


def _tree() -> str:
    return str(Path(__file__).parents[2])
