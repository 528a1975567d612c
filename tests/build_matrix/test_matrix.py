"""The matrix as data: which cells a kernel has, which a glob selects, why one is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_matrix.build_toml import read_build_file
from build_matrix.matrix import expand, plan, read_matrix, select
from hub_loader.errors import UsageError

TINY = Path(__file__).with_name("tiny-relu")
CELLS, _ = plan(read_build_file(TINY), read_matrix())


def test_plan_of_a_stable_kernel_gives_stable_and_exact_variants() -> None:
    assert [str(cell) for cell in CELLS] == [
        "torch-stable-abi210-cpu-x86_64-linux",
        "torch213-cxx11-cpu-x86_64-linux",
        "torch-stable-abi210-cu130-x86_64-linux",
    ]


def test_plan_takes_cuda_capabilities_from_the_kernel_else_from_the_matrix() -> None:
    build = read_build_file(TINY)
    matrix = read_matrix()
    assert CELLS[-1].capabilities == ("8.0", "9.0+PTX")
    unnamed = replace(build, components=tuple(replace(c, cuda_capabilities=()) for c in build.components))
    cells, _ = plan(unnamed, matrix)
    assert cells[-1].capabilities == ("8.0", "9.0", "10.0", "12.0")


def test_plan_of_a_backend_without_a_compiler_says_why() -> None:
    build = read_build_file(TINY)
    build = replace(build, general=replace(build.general, backends=("cpu", "rocm")))
    cells, refused = plan(build, read_matrix())
    assert all(cell.variant.backend.name == "cpu" for cell in cells)
    assert [(u.name, "PyPI or Debian" in u.reason) for u in refused] == [("rocm", True)]


def test_plan_outside_the_kernels_cuda_bounds_says_why() -> None:
    build = read_build_file(TINY)
    build = replace(build, general=replace(build.general, cuda_maxver=(12, 9)))
    cells, refused = plan(build, read_matrix())
    assert not any(cell.cuda for cell in cells)
    assert "minver and maxver" in refused[0].reason


def test_select_with_braces_and_stars_keeps_plan_order() -> None:
    chosen = select(CELLS, ["*-{cu130,cpu}-*"])
    assert chosen == CELLS
    assert [str(c) for c in select(CELLS, ["*cu130*"])] == ["torch-stable-abi210-cu130-x86_64-linux"]
    assert select(CELLS, []) == CELLS


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
