"""The compatibility matrix: what a cell says is what `khub explain` says of that environment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from khub_process import khub

from build_matrix.matrix import read_matrix
from hub_loader.described import describe_environment
from hub_loader.environment import Environment
from hub_loader.manifest import BackendInfo
from hub_loader.resolver import best, resolve
from registry.pages import releases
from registry.pages.matrix import (
    MAX_PLATFORMS,
    MAX_TOOLKITS,
    Toolkit,
    description,
    matrix,
    short_name,
)

_frameworks = st.sampled_from(
    ["torch-stable-abi210", "torch-stable-abi29", "torch25-cxx98", "torch28-cxx11", "torch213", "tvm-ffi01"]
)
_backends = st.sampled_from(["cpu", "cu124", "cu126", "cu130", "cu132", "rocm63", "xpu20252", "metal"])
_platforms = st.sampled_from(["x86_64-linux", "aarch64-linux", "aarch64-darwin", "x86_64-windows"])
_native = st.builds("{}-{}-{}".format, _frameworks, _backends, _platforms)
_tagged = st.builds("cp3{}-cpu-{}".format, st.integers(9, 15), _platforms)
_noarch = st.sampled_from(["torch-cpu", "torch-cuda", "torch-rocm", "torch-universal"])
_names = st.one_of(_native, _tagged, _noarch)
_bases = st.builds(
    Environment,
    python=st.sampled_from(["cp310", "cp314t", "pp310"]),
    arch=st.sampled_from(["x86_64", "aarch64"]),
    os=st.sampled_from(["linux", "darwin"]),
    musl=st.sampled_from([None, (1, 2)]),
    driver_cuda=st.sampled_from([None, (11, 8)]),
    compute_capabilities=st.sampled_from([(), ((9, 0),)]),
)


def backend(name: str) -> BackendInfo:
    found = re.search(r"cpu|cu(?=da|\d)|rocm|xpu|metal|universal", name)
    return BackendInfo({"cu": "cuda"}.get(found[0], found[0]) if found else "cpu")


@settings(max_examples=10, deadline=None)
@given(st.sets(_names, max_size=5), _bases)
def test_cell_is_what_the_resolver_answers_for_that_environment_described_on_any_machine(
    names: set[str], machine: Environment
) -> None:
    variants = {name: backend(name) for name in sorted(names)}
    tvm_ffi = (0, 1) if any("tvm-ffi" in name for name in names) else None
    for table in matrix(variants):
        for torch, cells in table.rows[::4]:
            for toolkit, cell in zip(table.toolkits, cells, strict=True):
                for python in table.pythons:
                    stated = description(table.arch, table.os, python, torch, toolkit, tvm_ffi)
                    decisions = resolve(describe_environment(machine, stated), variants)
                    assert cell.variant == best(decisions)
                    if cell.variant is not None:
                        assert cell.reason == decisions[0].reason
                    elif decisions:
                        assert any(d.reason.startswith(cell.label) for d in decisions)


def test_matrix_of_any_variants_covers_each_python_of_a_platform_once() -> None:
    variants = {
        name: backend(name) for name in ("cp310-cpu-x86_64-linux", "torch-stable-abi210-cu130-x86_64-linux")
    }
    for arch, os in releases.PLATFORMS:
        pythons = [
            p for table in matrix(variants) if (table.arch, table.os) == (arch, os) for p in table.pythons
        ]
        assert sorted(pythons) == sorted(releases.PYTHON)
    assert [row[0] for row in matrix(variants)[0].rows] == list(reversed(releases.TORCH))


def test_matrix_without_variants_has_a_reason_in_every_cell() -> None:
    tables = matrix({})
    assert all(table.fits == 0 and table.reasons == ("has no variant",) for table in tables)
    assert all(table.pythons == releases.PYTHON for table in tables)


def test_matrix_of_many_toolkits_and_platforms_is_bounded() -> None:
    names = [f"torch-stable-abi210-cu13{n}-x86_64-linux" for n in range(1, 12)]
    names += [f"torch-stable-abi210-cpu-arch{n}-linux" for n in range(5)]
    tables = matrix({name: backend(name) for name in names})
    assert len({(table.arch, table.os) for table in tables}) == MAX_PLATFORMS
    assert all(len(table.toolkits) <= MAX_TOOLKITS for table in tables)


def test_variant_that_names_rocm_gets_a_column_where_it_fits() -> None:
    (table, *_) = matrix({"torch28-cxx11-rocm63-x86_64-linux": BackendInfo("rocm")})
    column = table.toolkits.index(Toolkit("rocm", (6, 3)))
    cells = {torch: row[column] for torch, row in table.rows}
    assert cells["2.8.0"].variant == "torch28-cxx11-rocm63-x86_64-linux"
    assert cells["2.9.1"].label == "needs torch 2.8"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("torch-stable-abi210-cu130-x86_64-linux", "stable ABI 2.10 · cu130"),
        ("torch28-cxx11-cpu-aarch64-linux", "torch 2.8 · cpu"),
        ("cp311-cpu-x86_64-linux", "cp311 · no torch · cpu"),
        ("tvm-ffi01-cu124-x86_64-linux", "tvm-ffi 0.1 · cu124"),
        ("torch-cuda", "Python · cuda"),
    ],
)
def test_short_name_says_what_a_variant_is_built_for(name: str, shown: str) -> None:
    assert short_name(name) == shown


def test_rows_and_columns_are_the_releases_and_toolkits_of_the_build_matrix() -> None:
    torch = read_matrix().torch
    assert [release.release for release in torch] == list(releases.TORCH)
    wheels = [wheel for release in torch for wheel in release.wheels]
    assert {wheel.cuda for wheel in wheels if wheel.cuda is not None} == set(releases.CUDA)


def test_green_cell_is_what_the_command_chooses(tmp_path: Path) -> None:
    names = ("torch-stable-abi210-cu124-x86_64-linux", "torch28-cxx11-cpu-x86_64-linux", "torch-cpu")
    for name in names:
        folder = tmp_path / "build" / name
        folder.mkdir(parents=True)
        metadata = {
            "id": "_demo_cpu_1",
            "name": "demo",
            "version": 1,
            "license": "",
            "backend": {"type": backend(name).type},
        }
        (folder / "metadata.json").write_text(json.dumps(metadata))
    table = next(t for t in matrix({name: backend(name) for name in names}) if "3.12" in t.pythons)
    cells = {
        (torch, str(toolkit)): cell
        for torch, row in table.rows
        for toolkit, cell in zip(table.toolkits, row, strict=True)
    }
    for torch, toolkit in (
        ("2.13.0", "CUDA 12.8"),
        ("2.8.0", "CPU"),
        ("2.9.1", "CPU"),
        ("2.9.1", "CUDA 12.8"),
    ):
        option = ("--cpu",) if toolkit == "CPU" else ("--cuda", toolkit.split()[1])
        where = ("--arch", table.arch, "--os", table.os, "--glibc", "2.28", "--python", "3.12")
        done = khub("explain", str(tmp_path), "--json", "--torch", torch, *option, *where)
        assert json.loads(done.stdout)["chosen"] == cells[torch, toolkit].variant, done.stderr
