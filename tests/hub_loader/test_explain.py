"""`khub explain` of folders and for other environments: what it prints, and the code it exits with."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packages import python_package
from static_hub import StaticHub

import hub_loader
from hub_loader import Environment, InvalidKernelError, Torch, UsageError, explain
from hub_loader.cli import main
from hub_loader.explanation import explain_folder

VARIANTS = (
    "torch-stable-abi210-cpu-x86_64-linux",
    "torch-stable-abi210-cu130-x86_64-linux",
    "torch29-cxx11-cu128-x86_64-linux",
    "torch-cpu",
)
H100 = ["--torch", "2.9", "--cuda", "12.8", "--python", "3.12", "--sm", "90", "--arch", "x86_64"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return python_package(tmp_path / "package", variants=VARIANTS).folder


def test_explain_of_a_folder_for_a_described_gpu_sends_no_request_and_names_the_environment(
    folder: Path, hub: StaticHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(folder), *H100, "--glibc", "2.36"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        str(folder),
        "for cp312, x86_64-linux, glibc 2.36, torch 2.9+cu128 for CUDA 12.8, a GPU of 9.0",
    ]
    assert lines[2].split()[:2] == ["torch29-cxx11-cu128-x86_64-linux", "chosen"]
    assert hub.requests == []


def test_explain_of_a_repository_for_a_described_environment_asks_for_it(
    folder: Path, hub: StaticHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish("org/demo", "v1", folder)
    assert main(["explain", "org/demo", *H100, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["chosen"] == "torch29-cxx11-cu128-x86_64-linux"
    assert answer["environment"]["compute_capabilities"] == [[9, 0]]
    there = Environment("cp312", "x86_64", "linux", (2, 36), Torch((2, 13), "2.13.0", (13, 0), True))
    assert explain("org/demo", environment=there).chosen == "torch-stable-abi210-cu130-x86_64-linux"


def test_explain_when_nothing_matches_there_then_exits_with_12_and_says_why_for_each(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["explain", str(folder), "--torch", "2.8", "--cuda", "12.6", "--arch", "aarch64", "--json"])
        == 12
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["chosen"] is None
    assert {d["variant"]: d["reason"] for d in answer["decisions"]} == {
        "torch-cpu": "is for cpu, and cuda is wanted: torch is built for CUDA",
        "torch-stable-abi210-cpu-x86_64-linux": "is for cpu, and cuda is wanted: torch is built for CUDA",
        "torch-stable-abi210-cu130-x86_64-linux": "is for x86_64-linux, this machine is aarch64-linux",
        "torch29-cxx11-cu128-x86_64-linux": "is for x86_64-linux, this machine is aarch64-linux",
    }


def test_explain_with_the_env_of_another_machine_answers_for_that_machine(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["env", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    there |= {"arch": "x86_64", "os": "linux", "glibc": [2, 36], "python": "cp312"}
    there["torch"] |= {"version": [2, 13], "release": "2.13.0+cu130", "cuda": [13, 0], "cxx11_abi": True}
    file = tmp_path / "there.json"
    file.write_text(json.dumps(there))
    assert main(["explain", str(folder), "--env", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "torch-stable-abi210-cu130-x86_64-linux"
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    assert main(["explain", str(folder), "--env", "-", "--cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "torch-stable-abi210-cpu-x86_64-linux"


def test_explain_as_a_table_is_as_wide_as_the_terminal_and_keeps_every_word(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["explain", str(folder), *H100, "--glibc", "2.36", "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("┌"))) :]
    assert {len(line) for line in table} == {100}
    words = " ".join(line.split("│")[3].strip() for line in table if line.startswith("│"))
    assert "is for cpu, and cuda is wanted: torch is built for CUDA" in words
    assert "chosen" in table[3]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version", "1"],
        ["--json", "--table"],
        ["--env", "/nowhere.json"],
        ["--torch", "new"],
        ["--backend", "cpu", "--sm", "x"],
    ],
)
def test_explain_of_a_folder_when_arguments_make_no_sense_then_exits_with_2(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(folder), *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_explain_folder_reads_the_build_folder_and_one_variant_as_well(folder: Path) -> None:
    cpu = Environment("cp312", "x86_64", "linux", (2, 36), Torch((2, 13), "2.13.0", None, True))
    whole = explain_folder(folder, environment=cpu)
    assert explain_folder(folder / "build", environment=cpu).decisions == whole.decisions
    (one,) = explain_folder(folder / "build" / "torch-cpu", environment=cpu).decisions
    assert (one.variant, one.accepted) == ("torch-cpu", True)


def test_explain_folder_when_there_is_no_package_then_says_what_to_pass(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="holds no kernel"):
            explain_folder(path)
    misnamed = python_package(tmp_path / "package", variants=("torch-cpu",)).folder / "build"
    (misnamed / "torch-cpu").rename(misnamed / "latest")
    with pytest.raises(InvalidKernelError, match="is not named like a variant"):
        explain_folder(misnamed)


def test_the_public_names_that_most_processes_never_use_are_imported_at_their_first_use() -> None:
    code = (
        "import sys, hub_loader\n"
        "late = ['hub_loader.' + n for n in ('autotune', 'described', 'explanation', 'source_build')]\n"
        "assert not set(late) & set(sys.modules), sys.modules.keys() & set(late)\n"
        "assert all(getattr(hub_loader, name) is not None for name in hub_loader.__all__)\n"
        "assert not hasattr(hub_loader, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_has_the_name_of_a_public_function_which_importing_it_would_replace() -> None:
    modules = {path.stem for path in Path(hub_loader.__file__).parent.glob("*.py")}
    assert modules & set(hub_loader.__all__) == set()
    assert callable(hub_loader.explain)
