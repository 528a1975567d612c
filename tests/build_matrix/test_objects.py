"""What an object's name depends on, and what of a build a change touches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build_matrix.build import build_cell, toolchain
from build_matrix.build_toml import read_build_file
from build_matrix.compile import Compiled, compile_cell, ninja_file
from build_matrix.jobs import GIB, Limits, available_memory, limits
from build_matrix.matrix import read_matrix
from build_matrix.objects import object_key, reachable
from build_matrix.plan import plan, select
from build_matrix.provenance import Provenance, kernel_id
from build_matrix.toolchain.cache import ToolchainCache
from build_matrix.toolchain.host import find_compiler
from build_matrix.units import Unit, units
from hub_loader.errors import CacheError

TINY = Path(__file__).with_name("tiny-relu")
STABLE, EXACT, CUDA = (
    "torch-stable-abi210-cpu-x86_64-linux",
    "torch213-cxx11-cpu-x86_64-linux",
    "torch-stable-abi210-cu130-x86_64-linux",
)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny-relu"))


def names(source: Path, *search: Path, everything: tuple[Path, ...] = ()) -> set[str]:
    return {path.name for path in reachable(source, search, everything)}


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / (name.replace("_", ".", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def compiled(kernel: Path, variant: str, store: Path) -> Compiled:
    build, matrix = read_build_file(kernel), read_matrix()
    (cell,) = select(plan(build, matrix)[0], [variant])
    tools = toolchain(ToolchainCache(), find_compiler(), matrix, cell)
    store.mkdir(exist_ok=True)
    return compile_cell(build, cell, kernel_id(build, cell), tools, store)


def cell_units(kernel: Path, variant: str) -> dict[str, Unit]:
    build, matrix = read_build_file(kernel), read_matrix()
    (cell,) = select(plan(build, matrix)[0], [variant])
    tools = toolchain(ToolchainCache(), find_compiler(), matrix, cell)
    return {unit.source.name: unit for unit in units(build, cell, kernel_id(build, cell), tools)}


def test_reachable_follows_quoted_and_bracketed_includes_through_every_branch(tmp_path: Path) -> None:
    write(
        tmp_path,
        a_cpp='#include "b.h"\n#if 0\n#  include <c.h>\n#endif\n#inclu\\\nde "e.h"\n#include <vector>\n',
        b_h='#pragma once\n#include "b.h"\n',
        c_h="%:include <d.h>\n",
        d_h="",
        e_h="",
        f_h="",
    )
    assert names(tmp_path / "a.cpp", tmp_path) == {"a.cpp", "b.h", "c.h", "d.h", "e.h"}


@pytest.mark.parametrize(
    "text",
    [
        "#include HEADER\n",
        '#if __has_include("late.h")\n#endif\n',
        'asm(".incbin \\"table.bin\\"");\n',
        '#embed "table.bin"\n',
    ],
)
def test_reachable_when_the_text_does_not_say_which_file_takes_everything(tmp_path: Path, text: str) -> None:
    write(tmp_path, a_cpp=text, b_h="")
    assert names(tmp_path / "a.cpp", everything=(tmp_path / "b.h",)) == {"a.cpp", "b.h"}


def test_reachable_takes_every_file_that_a_name_could_mean(tmp_path: Path) -> None:
    write(tmp_path / "near", a_cpp="#include <x.h>\n", x_h="near")
    write(tmp_path / "far", x_h="far")
    found = reachable(tmp_path / "near" / "a.cpp", [tmp_path / "far"], ())
    assert {data for path, data in found.items() if path.name == "x.h"} == {b"near", b"far"}


def test_object_key_depends_on_content_command_and_toolchain_but_not_on_the_checkout(tmp_path: Path) -> None:
    def key(folder: str, flag: str = "-O3", data: bytes = b"x", compiler: str = "12.2.0") -> str:
        place = tmp_path / folder
        source = place / "a.cpp"
        return object_key(["g++", flag, f"-I{place}", source], {source: data}, [compiler], {place: "kernel"})

    keys = [key("one"), key("one", flag="-O2"), key("one", data=b"y"), key("one", compiler="13.1.0")]
    assert len(set(keys)) == 4
    assert key("two") == keys[0]


def test_a_changed_header_changes_only_the_objects_that_include_it(kernel: Path) -> None:
    (kernel / "csrc" / "detail.h").write_text("// one\n")
    source = kernel / "csrc" / "relu.cpp"
    source.write_text('#include "detail.h"\n' + source.read_text())
    before, cuda_before = cell_units(kernel, STABLE), cell_units(kernel, CUDA)
    (kernel / "csrc" / "detail.h").write_text("// two\n")
    after, cuda_after = cell_units(kernel, STABLE), cell_units(kernel, CUDA)
    assert before["relu.cpp"].key != after["relu.cpp"].key
    assert before["torch_binding.cpp"].key != after["torch_binding.cpp"].key  # it carries the build's id
    assert cuda_before["relu.cu"].key == cuda_after["relu.cu"].key


def test_a_flag_that_reads_files_makes_every_file_of_the_kernel_count(kernel: Path) -> None:
    (kernel / "csrc" / "config.h").write_text("// one\n")
    before = cell_units(kernel, STABLE)["relu.cpp"].key
    (kernel / "csrc" / "config.h").write_text("// two\n")
    assert cell_units(kernel, STABLE)["relu.cpp"].key == before
    build = kernel / "build.toml"
    flags = 'depends = []\ncxx-flags = ["-include", "config.h"]'
    build.write_text(build.read_text().replace("depends = []", flags, 1))
    with_flag = cell_units(kernel, STABLE)["relu.cpp"].key
    (kernel / "csrc" / "config.h").write_text("// three\n")
    assert cell_units(kernel, STABLE)["relu.cpp"].key != with_flag


def test_a_unit_without_torch_is_the_same_object_in_every_variant_of_its_backend(kernel: Path) -> None:
    stable, exact = cell_units(kernel, STABLE), cell_units(kernel, EXACT)
    assert stable["relu.cpp"].key == exact["relu.cpp"].key
    assert stable["torch_binding.cpp"].key != exact["torch_binding.cpp"].key
    assert (stable["torch_binding.cpp"].heavy, exact["torch_binding.cpp"].heavy) == (False, True)


def test_compile_takes_what_another_variant_and_another_checkout_left(kernel: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = compiled(TINY, STABLE, store)
    assert (first.compiled, first.reused) == (2, 0)
    other = compiled(kernel, EXACT, store)
    assert (other.compiled, other.reused) == (1, 1)
    again = compiled(kernel, STABLE, store)
    assert (again.library, again.compiled) == (first.library, 0)
    assert "torch_binding" in again.log.read_text()
    kept = {path.name for path in store.iterdir()}
    assert kept == {"libraries", "objects"}  # nothing unfinished stays


@pytest.mark.parametrize("variant", [STABLE, pytest.param(CUDA, marks=pytest.mark.heavy)])
def test_compile_in_another_folder_and_store_gives_the_same_objects_and_libraries(
    tmp_path: Path, variant: str
) -> None:
    def files(kernel: Path, store: Path) -> dict[str, bytes]:
        compiled(kernel, variant, store)
        found = {path.relative_to(store).as_posix(): path for path in store.rglob("*")}
        return {name: path.read_bytes() for name, path in found.items() if path.suffix in (".o", ".so")}

    one = files(TINY, tmp_path / "one")
    assert len(one) == 3
    copy = Path(shutil.copytree(TINY, tmp_path / "another" / TINY.name))
    assert one == files(copy, tmp_path / "two")


def test_build_cell_that_cannot_write_says_where_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for part in ToolchainCache().root.iterdir():
        if part.name not in ("objects", "libraries") and not part.name.startswith("."):
            (store / part.name).symlink_to(part)
    (store / "libraries").write_text("in the way")
    before = sorted(store.iterdir())
    build, matrix = read_build_file(TINY), read_matrix()
    (cell,) = select(plan(build, matrix)[0], [STABLE])
    origin = Provenance(None, False)
    outcome = build_cell(build, cell, matrix, tmp_path / "out", ToolchainCache(store), origin)
    assert isinstance(outcome.error, CacheError)
    assert "libraries" in str(outcome.error)
    assert sorted(store.iterdir()) == before
    assert not (tmp_path / "out").exists()


def test_ninja_file_puts_heavy_units_into_a_pool(kernel: Path, tmp_path: Path) -> None:
    parts = list(cell_units(kernel, EXACT).values())
    build, matrix = read_build_file(kernel), read_matrix()
    tools = toolchain(ToolchainCache(), find_compiler(), matrix, select(plan(build, matrix)[0], [EXACT])[0])
    text = ninja_file(
        parts, parts, tmp_path / "objects", tmp_path / "x.so", ["g++"], tools, Limits(jobs=8, heavy=3)
    )
    assert "pool heavy\n  depth = 3\n" in text
    rules = [rule for rule in text.split("rule ")[1:] if "  pool = heavy" in rule]
    assert len(rules) == 1
    assert "torch_binding" in rules[0]


@pytest.mark.parametrize(
    ("cores", "memory", "expected"),
    [
        (8, 64 * GIB, Limits(8, 8)),
        (8, 6 * GIB, Limits(8, 4)),
        (8, 2 * GIB, Limits(5, 1)),
        (2, GIB // 8, Limits(1, 1)),
    ],
)
def test_limits_are_those_of_cores_and_of_memory(cores: int, memory: int, expected: Limits) -> None:
    assert limits(cores, memory) == expected


def test_available_memory_is_the_machines_or_what_a_containers_limit_leaves(tmp_path: Path) -> None:
    proc = tmp_path / "meminfo"
    proc.write_text("MemTotal: 9000 kB\nMemAvailable:    4096 kB\n")
    assert available_memory(proc, tmp_path) == 4096 * 1024
    write(tmp_path, memory_max="max\n", memory_current="0\n")
    assert available_memory(proc, tmp_path) == 4096 * 1024
    write(tmp_path, memory_max="1000000\n", memory_current="400000\n")
    assert available_memory(proc, tmp_path) == 600000
