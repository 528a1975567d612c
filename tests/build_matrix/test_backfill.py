"""Stable-ABI kernels for torch releases older than their ABI: what those lack is linked in, and computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_audit import GOOD

from build_matrix.audit import Promise, violations
from build_matrix.build import build_cell
from build_matrix.build_file import BuildFile
from build_matrix.build_toml import read_build_file
from build_matrix.matrix import Cell, read_matrix
from build_matrix.plan import plan, select
from build_matrix.provenance import Provenance
from build_matrix.toolchain.cache import ToolchainCache
from hub_loader.variant import parse_variant

TINY = Path(__file__).parent / "kernels" / "tiny-stable"
MATRIX = read_matrix()
EXACT = parse_variant("torch213-cxx11-cpu-x86_64-linux")
RUN = """
import pathlib, sys
from hub_loader import get_local_kernel
from build_matrix.load_child import load_check
load_check(pathlib.Path(sys.argv[2])).check(get_local_kernel(sys.argv[1]))
"""


def bound_to(build: BuildFile, major: int, minor: int) -> BuildFile:
    return replace(build, framework=replace(build.framework, stable_abi={"cpu": (major, minor)}))


def test_plan_of_a_stable_kernel_has_an_exact_variant_for_each_older_torch() -> None:
    cells = select(plan(read_build_file(TINY), MATRIX)[0], ["*-x86_64-*"])
    assert [(str(cell), cell.backfill, cell.torch_release, cell.stable_abi) for cell in cells[1:]] == [
        (f"torch2{minor}-{abi}-cpu-x86_64-linux", release, MATRIX.stable_headers, (2, 11))
        for minor, abi, release in (
            (5, "cxx98", "2.5.1"),
            (6, "cxx98", "2.6.0"),
            (7, "cxx11", "2.7.1"),
            (8, "cxx11", "2.8.0"),
            (9, "cxx11", "2.9.1"),
            (10, "cxx11", "2.10.0"),
        )
    ]
    assert cells[0].backfill is None


def test_plan_of_a_kernel_for_a_newer_abi_than_is_brought_along_says_so() -> None:
    cells, refused = plan(bound_to(read_build_file(TINY), 2, 12), MATRIX)
    assert not any(cell.backfill for cell in cells)
    reasons = {u.name: u.reason for u in refused}
    assert set(reasons) >= {"torch25-cxx98-cpu-x86_64-linux", "torch211-cxx11-cpu-x86_64-linux"}
    assert reasons["torch211-cxx11-cpu-x86_64-linux"] == (
        "the binding is written against torch's stable ABI of 2.12, which torch 2.11 does not have; one written "
        "against that of 2.11 builds for it"
    )


def test_audit_refuses_a_function_of_the_shim_that_the_torch_named_does_not_have() -> None:
    library = replace(GOOD, undefined=("aoti_torch_get_dim", "torch_from_blob"), exported=("PyInit__k",))
    promise = Promise(EXACT, "_k", MATRIX.baseline, (), shim={"aoti_torch_get_dim"})
    assert violations(library, promise) == [
        f"it needs the symbol torch_from_blob, which a user of {EXACT} may not have"
    ]
    assert violations(library, replace(promise, shim=None)) == []


@pytest.mark.slow
def test_what_is_linked_in_passes_every_value_and_function_of_the_abi(tmp_path: Path) -> None:
    """Built against the torch that is here, as for one that has no stable ABI at all."""
    cell = Cell(EXACT, MATRIX.stable_headers, (2, 11), backfill="2.13.0")
    build, cache = read_build_file(TINY), ToolchainCache()
    outcome = build_cell(build, cell, MATRIX, tmp_path, cache, Provenance(None, False))
    assert outcome.error is None
    command = [sys.executable, "-c", RUN, outcome.folder, TINY / "tests" / "load_check.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.heavy
def test_variants_for_the_oldest_and_newest_older_torch_compute_in_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub_loader", "build", str(TINY), "--select", "torch2{5,9}-*-x86_64-*"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--load", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = {gate["gate"]: gate["sentence"] for c in json.loads(done.stdout)["cells"] for gate in c["gates"]}
    for release in ("2.5.1", "2.9.1"):
        assert "agrees with the reference" in said[f"load in torch {release}"]
