"""The Python axis: one binary for each interpreter, each loaded by the interpreter it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from build_matrix.audit import Library, Promise, read_library, violations
from build_matrix.build import toolchain
from build_matrix.build_toml import read_build_file
from build_matrix.compile import compile_cell
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan, select
from build_matrix.provenance import kernel_id, library_name
from build_matrix.python_cells import plan_python
from build_matrix.toolchain import interpreters
from build_matrix.toolchain.cache import ToolchainCache
from build_matrix.toolchain.host import find_compiler
from build_matrix.toolchain.interpreters import Interpreter, interpreter_with_headers
from build_matrix.units import units
from hub_loader.errors import BuildConfigError, ToolchainError
from hub_loader.variant import parse_variant

ROOT = Path(__file__).resolve().parents[2]
PLANNER = ROOT / "kernels_src" / "batch-planner"
BUILD, MATRIX = read_build_file(PLANNER), read_matrix()
HERE = f"cp3{sys.version_info.minor}"
LOAD = """
import json, sys
import hub_loader
planner = hub_loader.get_local_kernel(sys.argv[1])
plan = planner.plan_step([3, 2], [3, 1], [[5], [1]], 4, tokens=[[7, 8, 9], [7, 8]])
hashes = planner.hash_blocks([1, 2, 3, 4], 2, 9)
(loaded,) = hub_loader.get_loaded_kernels()
print(json.dumps([loaded.variant, [a.tolist() for a in plan], [h.hex() for h in hashes], "torch" in sys.modules]))
"""


@pytest.fixture(autouse=True)
def forget() -> None:
    interpreters._all.cache_clear()


def build(out: Path, *selected: str) -> dict[str, str]:
    """Variant -> its library's name, of a package built into `out`."""
    globs = [word for glob in selected for word in ("--select", glob)]
    command = [sys.executable, "-m", "hub_loader", "build", str(PLANNER), *globs, "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    return {cell["variant"]: next(Path(cell["folder"]).glob("*.so")).name for cell in cells}


def fake_python(folder: Path, release: str, script: str) -> Path:
    path = folder / f"python{release}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def nowhere_else(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Leave PATH alone to look for interpreters, and one folder in it."""
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("PYENV_ROOT", str(path / "none"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(path / "none"))


def test_plan_of_a_pybind11_kernel_gives_a_cell_for_each_interpreter() -> None:
    cells, refused = plan_python(BUILD, MATRIX, find=lambda tag: Interpreter(Path(), tag, "3.9.9", ()))
    assert [str(cell) for cell in cells] == [f"cp3{minor}-cpu-x86_64-linux" for minor in range(10, 15)]
    assert {(cell.torch_release, cell.python_release, cell.pybind11) for cell in cells} == {
        (None, "3.9.9", MATRIX.pybind11.package)
    }
    assert refused == []
    assert f"{HERE}-cpu-x86_64-linux" in map(str, plan(BUILD, MATRIX)[0])


def test_plan_where_an_interpreter_is_missing_says_why_and_keeps_the_others() -> None:
    def find(tag: str) -> Interpreter:
        if tag == "cp312":
            raise ToolchainError("no Python 3.12 is here")
        return Interpreter(Path(), tag, "3.9.9", ())

    cells, refused = plan_python(BUILD, MATRIX, find)
    assert len(cells) == len(MATRIX.pybind11.pythons) - 1
    assert [(u.name, u.reason) for u in refused] == [("cp312-cpu-x86_64-linux", "no Python 3.12 is here")]


def test_plan_of_a_pybind11_kernel_for_cuda_says_why_not() -> None:
    wanted = replace(BUILD, general=replace(BUILD.general, backends=("cuda",)))
    assert [u.name for u in plan(wanted, MATRIX)[1]] == ["cuda"]


def test_headers_of_the_running_interpreter_are_those_of_its_version() -> None:
    include = interpreter_with_headers(HERE).include
    text = (include[0] / "patchlevel.h").read_text()
    assert re.search(rf"#define PY_MINOR_VERSION\s+{sys.version_info.minor}\n", text)


def test_headers_where_no_interpreter_is_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere_else(monkeypatch, tmp_path)
    with pytest.raises(ToolchainError, match=r"no Python 3\.7 is here: install it with its headers"):
        interpreter_with_headers("cp37")


@pytest.mark.parametrize("script", ["exit 127", f"exec {sys.executable} -c 'print(0)'", "echo nonsense"])
def test_headers_of_what_is_no_such_interpreter_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fake_python(tmp_path, "3.7", script)
    nowhere_else(monkeypatch, tmp_path)
    with pytest.raises(ToolchainError, match="no Python 3.7 is here"):
        interpreter_with_headers("cp37")


def test_headers_of_an_interpreter_without_them_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"tag": "cp37", "version": "3.7.1", "include": [str(tmp_path / "include")]})
    headless = fake_python(tmp_path, "3.7", f"echo '{answer}'")
    nowhere_else(monkeypatch, tmp_path)
    with pytest.raises(
        ToolchainError, match=f"{headless} is there without its headers: install python3.7-dev"
    ):
        interpreter_with_headers("cp37")


def test_headers_of_a_free_threaded_tag_are_refused() -> None:
    with pytest.raises(ToolchainError, match="cp313t is not the tag of a CPython with the GIL"):
        interpreter_with_headers("cp313t")


def test_library_name_tells_which_interpreters_load_it() -> None:
    assert (
        library_name("_a_cpu_1", parse_variant("torch-stable-abi210-cpu-x86_64-linux")) == "_a_cpu_1.abi3.so"
    )
    exact = library_name("_a_cpu_1", parse_variant("cp312-cpu-aarch64-linux"))
    assert exact == "_a_cpu_1.cpython-312-aarch64-linux-gnu.so"


def test_build_file_with_a_pybind11_table_needs_sources(tmp_path: Path) -> None:
    (tmp_path / "build.toml").write_text(
        (PLANNER / "build.toml").read_text().replace('src = ["py', 'sources = ["py')
    )
    with pytest.raises(
        BuildConfigError, match=r"\[pybind11\] unknown key 'sources'|\[pybind11\] the key 'src'"
    ):
        read_build_file(tmp_path)


def test_build_file_with_a_pybind11_table_and_a_dependency_is_refused(tmp_path: Path) -> None:
    kernel = Path(shutil.copytree(PLANNER, tmp_path / "batch-planner"))
    text = (kernel / "build.toml").read_text()
    (kernel / "build.toml").write_text(text.replace("depends = []", 'depends = ["torch"]'))
    with pytest.raises(
        BuildConfigError, match=r"names 'torch', but \[pybind11\] kernels are built without it"
    ):
        read_build_file(kernel)


def test_units_give_the_id_and_the_release_of_the_headers_to_the_binding_alone() -> None:
    (cell,) = select(plan(BUILD, MATRIX)[0], [f"{HERE}-*"])
    tools = toolchain(ToolchainCache(), find_compiler(), MATRIX, cell)
    before = units(BUILD, cell, "_k", tools)
    after = units(BUILD, replace(cell, python_release="3.9.9"), "_k", tools)
    assert [unit.source.name for unit in before if "-DEXTENSION_NAME=_k" in unit.command] == ["binding.cpp"]
    changed = [new.source.name for old, new in zip(before, after, strict=True) if old.key != new.key]
    assert changed == ["binding.cpp"]
    assert kernel_id(BUILD, cell) != kernel_id(BUILD, replace(cell, python_release="3.9.9"))


def test_units_of_a_torch_kernel_define_the_name_of_torch_alone() -> None:
    kernel = read_build_file(ROOT / "tests" / "build_matrix" / "tiny-relu")
    (cell,) = select(plan(kernel, MATRIX)[0], ["torch-stable-abi210-cpu-x86_64-*"])
    tools = toolchain(ToolchainCache(), find_compiler(), MATRIX, cell)
    flags = [str(word) for unit in units(kernel, cell, "_k", tools) for word in unit.command]
    assert [flag for flag in flags if "EXTENSION_NAME" in flag] == ["-DTORCH_EXTENSION_NAME=_k"]


def test_build_for_this_interpreter_passes_its_audit_and_loads_without_torch(tmp_path: Path) -> None:
    (item,) = build(tmp_path, f"{HERE}-*").items()
    variant, library = item
    assert library.endswith(f".cpython-3{sys.version_info.minor}-x86_64-linux-gnu.so")
    read = read_library(tmp_path / "build" / variant / library)
    name = library.split(".")[0]
    assert read.exported == (f"PyInit_{name}",)
    assert violations(read, Promise(parse_variant(variant), name, MATRIX.baseline, ())) == []
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[::3] == [variant, False]


def test_audit_of_a_python_variant_lets_pythons_symbols_through_and_no_other() -> None:
    def found(name: str, *undefined: str) -> list[str]:
        library = Library("EM_X86_64", (), None, (), undefined, ("PyInit__k",), ())
        return violations(library, Promise(parse_variant(name), "_k", MATRIX.baseline, ()))

    symbols = ("PyFrame_GetBack", "_PyObject_GetDictPtr", "gettid")
    assert found("cp311-cpu-x86_64-linux", *symbols) == [
        "it needs the symbol gettid, which a user of cp311-cpu-x86_64-linux may not have"
    ]
    assert len(found("torch-stable-abi210-cpu-x86_64-linux", *symbols)) == 3


@pytest.mark.slow
@pytest.mark.heavy
def test_build_in_another_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    cache, compiler, libraries = ToolchainCache(), find_compiler(), []
    for folder in (PLANNER, Path(shutil.copytree(PLANNER, tmp_path / "copy"))):
        source = read_build_file(folder)
        (cell,) = select(plan(source, MATRIX)[0], [f"{HERE}-*"])
        tools, work = toolchain(cache, compiler, MATRIX, cell), tmp_path / f"work{len(libraries)}"
        libraries.append(
            compile_cell(source, cell, kernel_id(source, cell), tools, work).library.read_bytes()
        )
    assert libraries[0] == libraries[1]


@pytest.mark.slow
@pytest.mark.heavy
def test_a_package_of_every_interpreter_here_loads_in_each_of_them_without_torch(tmp_path: Path) -> None:
    package = tmp_path / "package"
    built = build(package)
    assert f"{HERE}-cpu-x86_64-linux" in built
    answers = []
    for variant in built:
        tag = variant.split("-")[0]
        interpreter = interpreter_with_headers(tag).path
        environment = tmp_path / tag
        subprocess.run([interpreter, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "numpy", "packaging"]
        subprocess.run(pip, check=True)
        done = subprocess.run(
            [environment / "bin" / "python", "-c", LOAD, package],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        loaded, *answer = json.loads(done.stdout)
        assert loaded == variant
        answers.append(answer)
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][-1] is False
