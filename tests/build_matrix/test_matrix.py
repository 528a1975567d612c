"""The matrix as data: which cells a kernel has, which a glob selects, why one is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_matrix.build_file import BuildFile
from build_matrix.build_toml import read_build_file
from build_matrix.matrix import Unbuildable, read_matrix
from build_matrix.matrix_cli import left_out
from build_matrix.plan import compiler_version, expand, plan, select
from hub_loader.errors import UsageError

TINY = Path(__file__).with_name("tiny-relu")
MATRIX = read_matrix()
CELLS, REFUSED = plan(read_build_file(TINY), MATRIX)


def without_stable_abi(build: BuildFile) -> BuildFile:
    return replace(build, framework=replace(build.framework, stable_abi=None))


def test_select_without_globs_of_a_stable_kernel_gives_its_stable_variants_and_those_for_older_torch() -> (
    None
):
    names = [str(cell) for cell in select(CELLS, [])]
    assert [name for name in names if name.startswith("torch-stable")] == [
        "torch-stable-abi210-cpu-x86_64-linux",
        "torch-stable-abi210-cpu-aarch64-linux",
        "torch-stable-abi210-cu124-x86_64-linux",
        "torch-stable-abi210-cu130-x86_64-linux",
        "torch-stable-abi210-cu130-aarch64-linux",
    ]
    older = [name.split("-")[0] for name in names if not name.startswith("torch-stable")]
    assert sorted(older) == [f"torch2{minor}" for minor in (5, 6, 7, 8, 9) for _ in range(3)]


def test_select_that_names_torch_releases_gives_exact_builds_of_a_stable_kernel() -> None:
    assert [str(c) for c in select(CELLS, ["torch2{13,14}-*-cpu-x86_64-*"])] == [
        "torch213-cxx11-cpu-x86_64-linux",
        "torch214-cxx11-cpu-x86_64-linux",
    ]
    assert not any(cell.on_request for cell in select(CELLS, ["*cpu*", "torch*cpu*"]))


def test_plan_of_a_kernel_without_stable_abi_gives_every_torch_wheel_its_variants() -> None:
    cells, refused = plan(without_stable_abi(read_build_file(TINY)), MATRIX)
    names = [str(cell) for cell in cells]
    assert refused == []
    assert select(cells, []) == cells
    assert len(names) == len(set(names)) == 38
    # The C++ ABI is that of the wheel: torch 2.6 has the old one on x86_64 alone.
    assert "torch25-cxx98-cpu-aarch64-linux" in names
    assert "torch26-cxx98-cu124-x86_64-linux" in names
    assert "torch26-cxx11-cpu-aarch64-linux" in names
    # A wheel for CUDA 12.8 is compiled for with 12.4, one for 13.2 with 13.0; wheels without CUDA not at all.
    assert "torch210-cxx11-cu124-x86_64-linux" in names
    assert "torch215-cxx11-cu130-aarch64-linux" in names
    assert not any("cu12" in name and "aarch64" in name for name in names)


def test_every_wheel_of_the_matrix_has_a_compiler_and_every_target_too() -> None:
    for torch in MATRIX.torch:
        for wheel in torch.wheels:
            assert wheel.cuda is None or compiler_version(wheel.cuda, MATRIX.cuda) is not None
    for target in (*MATRIX.stable_targets, *MATRIX.tvm_ffi.targets):
        assert target.backend.version is None or target.backend.version in MATRIX.cuda
        assert target.arch == "x86_64" or target.arch in MATRIX.cross


@pytest.mark.parametrize(
    ("installed", "compiled_with"),
    [((12, 4), (12, 4)), ((12, 8), (12, 4)), ((13, 2), (13, 0)), ((12, 1), None), ((14, 0), None)],
)
def test_compiler_version_is_the_newest_of_the_major_that_is_not_newer(
    installed: tuple[int, int], compiled_with: tuple[int, int] | None
) -> None:
    assert compiler_version(installed, [(12, 4), (13, 0)]) == compiled_with


def test_plan_takes_cuda_capabilities_from_the_kernel_else_from_the_matrix() -> None:
    build = read_build_file(TINY)
    cell = select(CELLS, ["*stable*cu130-x86_64*"])[0]
    assert cell.capabilities == ("8.0", "9.0+PTX")
    unnamed = replace(build, components=tuple(replace(c, cuda_capabilities=()) for c in build.components))
    cells, _ = plan(unnamed, MATRIX)
    assert select(cells, ["*stable*cu130-x86_64*"])[0].capabilities == ("8.0", "9.0", "10.0", "12.0")


def test_plan_of_a_backend_without_a_compiler_says_why() -> None:
    build = without_stable_abi(read_build_file(TINY))
    hip = replace(build.components[0], backend="rocm")
    build = replace(
        build, general=replace(build.general, backends=("cpu", "rocm")), components=(*build.components, hip)
    )
    cells, refused = plan(build, MATRIX)
    assert all(cell.variant.backend.name == "cpu" for cell in cells)
    assert [(u.name, "PyPI or Debian" in u.reason) for u in refused] == [("rocm", True)]


def test_plan_outside_the_kernels_cuda_bounds_says_why() -> None:
    build = without_stable_abi(read_build_file(TINY))
    build = replace(build, general=replace(build.general, cuda_maxver=(12, 9)))
    cells, refused = plan(build, MATRIX)
    assert {cell.cuda.version for cell in cells if cell.cuda} == {(12, 4)}
    assert {u.reason for u in refused} == {"outside build.toml's [general.cuda] minver and maxver"}


def test_left_out_groups_variants_by_reason() -> None:
    refused = [Unbuildable(name, reason) for name, reason in (("a", "x"), ("b", "y"), ("c", "x"))]
    assert list(left_out(refused)) == ["2 variants, a to c: x", "b: y"]


def test_select_with_braces_and_stars_keeps_plan_order() -> None:
    stable = select(CELLS, ["*stable*"])
    assert select(CELLS, ["*stable*-{cu130,cu124,cpu}-*"]) == stable
    assert select(CELLS, ["*cu130-x86_64*", "*stable*cu124*"]) == stable[2:4]


def test_select_that_matches_nothing_names_the_cells() -> None:
    with pytest.raises(UsageError, match=r"'\*rocm\*' matches no cell; the cells are: torch-stable"):
        select(CELLS, ["*rocm*"])


@given(st.lists(st.lists(st.text("abc19-*", max_size=4), min_size=1, max_size=3), max_size=3))
def test_expand_gives_every_combination_once(groups: list[list[str]]) -> None:
    pattern = "x".join("{" + ",".join(group) + "}" for group in groups)
    expected = [""]
    for number, group in enumerate(groups):
        expected = [head + ("x" if number else "") + part for head in expected for part in group]
    assert expand(pattern) == expected


def khub_matrix(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "hub_loader", "matrix", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


def test_khub_matrix_of_a_kernel_prints_every_cell_and_reason() -> None:
    data = json.loads(khub_matrix(TINY, "--json"))["tiny-relu"]
    assert [cell["variant"] for cell in data["cells"]] == [str(cell) for cell in CELLS]
    assert [row["name"] for row in data["left_out"]] == [u.name for u in REFUSED]
    table = khub_matrix(TINY)
    assert all(str(cell) in table for cell in CELLS)
    assert "on request" in table


def test_khub_matrix_without_a_kernel_prints_every_wheel() -> None:
    rows = json.loads(khub_matrix("--json"))
    assert {row["torch"] for row in rows} == {torch.release for torch in MATRIX.torch}
    assert rows[0] == {
        "torch": "2.5.1",
        "arch": "x86_64",
        "cuda": "12.4",
        "cxx11_abi": False,
        "python": ["3.9", "3.13"],
        "exact": ["cpu", "cu124"],
    }


def test_khub_matrix_write_without_refresh_is_refused() -> None:
    assert "--write belongs to" in khub_matrix("--write", code=UsageError.exit_code)


def test_khub_matrix_of_a_glob_passes_over_what_is_no_kernel_and_refuses_what_is_not_there() -> None:
    command = [sys.executable, "-m", "hub_loader", "matrix", str(TINY), __file__, str(TINY.parent)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert (done.returncode, list(json.loads(done.stdout))) == (0, ["tiny-relu"])
    done = subprocess.run([*command, "nowhere"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "nowhere/build.toml does not exist" in done.stderr
    done = subprocess.run([*command[:-3], __file__], capture_output=True, text=True)
    assert "build.toml does not exist" in done.stderr
