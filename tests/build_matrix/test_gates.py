"""Gates: which torch a variant's name promises, what a load proves, and that a failed gate packages nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from build_matrix import load_child
from build_matrix.gates import Verdict, require, unique_ids
from build_matrix.load import answer, load_command, promised
from build_matrix.matrix import DebianPackages, EmulatorRelease, TorchRelease, TorchWheel, read_matrix
from build_matrix.toolchain.hollow import HollowTorch
from build_matrix.toolchain.host import HostCompiler, find_compiler
from build_matrix.toolchain.runner import Runner
from hub_loader.errors import AuditError
from hub_loader.variant import parse_variant

TINY = Path(__file__).with_name("tiny-relu")
STABLE = "torch-stable-abi210-cpu-x86_64-linux"
ARM = STABLE.replace("x86_64", "aarch64")
# Release, oldest Python, CUDA of the wheel for x86_64 and of the one for aarch64.
TORCHES = tuple(
    TorchRelease(
        release, (oldest, (3, 14)), (TorchWheel("x86_64", x86, True), TorchWheel("aarch64", arm, True))
    )
    for release, oldest, x86, arm in (
        ("2.5.1", (3, 9), (12, 4), None),
        ("2.10.0", (3, 10), (12, 8), None),
        ("2.11.0", (3, 10), (13, 0), (13, 0)),
        ("2.13.0", (3, 10), (13, 0), (13, 0)),
        ("2.15.0", (3, 11), (13, 2), (13, 2)),
    )
)
NOTHING = DebianPackages("bookworm", "main", ())


@pytest.mark.parametrize(
    ("variant", "releases"),
    [
        (STABLE, ["2.10.0", "2.15.0"]),
        ("torch-stable-abi215-cpu-x86_64-linux", ["2.15.0"]),
        ("torch25-cxx98-cpu-x86_64-linux", ["2.5.1"]),
        ("torch-stable-abi210-cu130-x86_64-linux", ["2.11.0", "2.15.0"]),
        ("torch-stable-abi210-cu132-x86_64-linux", ["2.15.0"]),
        ("torch-stable-abi210-cu124-x86_64-linux", ["2.10.0"]),
    ],
)
def test_promised_is_the_oldest_and_the_newest_torch_the_name_fits(variant: str, releases: list[str]) -> None:
    torches, _ = promised(parse_variant(variant), TORCHES, "x86_64")
    assert [torch.release for torch in torches] == releases


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("torch27-cxx11-cpu-x86_64-linux", "lists no torch"),
        (ARM, "needs a machine of architecture aarch64"),
        ("torch-cuda", "only what binds to torch's libraries"),
        ("cp311-cpu-x86_64-linux", "only what binds to torch's libraries"),
    ],
)
def test_promised_of_what_cannot_be_loaded_here_says_why(variant: str, reason: str) -> None:
    torches, why = promised(parse_variant(variant), TORCHES, "x86_64")
    assert torches == []
    assert reason in why


@pytest.mark.parametrize(
    ("variant", "python", "releases"),
    [
        (ARM, (3, 11), ["2.10.0", "2.15.0"]),
        (ARM, (3, 10), ["2.10.0", "2.13.0"]),
        ("torch25-cxx98-cpu-aarch64-linux", (3, 11), ["2.5.1"]),
        ("torch-stable-abi210-cu130-aarch64-linux", (3, 11), ["2.11.0", "2.15.0"]),
        ("torch-stable-abi210-cu124-aarch64-linux", (3, 11), []),
        (STABLE, (3, 10), ["2.10.0", "2.15.0"]),
    ],
)
def test_promised_of_another_architecture_is_what_its_wheels_are_and_its_emulator_has_the_python_for(
    variant: str, python: tuple[int, int], releases: list[str]
) -> None:
    emulator = EmulatorRelease("aarch64", python, NOTHING, NOTHING)
    torches, _ = promised(parse_variant(variant), TORCHES, "x86_64", [emulator])
    assert [torch.release for torch in torches] == releases


def test_load_command_of_another_architecture_starts_with_the_emulator_and_passes_it_the_childs_arguments() -> (
    None
):
    compiler = HostCompiler(Path("g++"), "12.2.0", "aarch64-linux-gnu")
    hollow = HollowTorch("2.10.0", Path("/torch"), Path("/dependencies"))
    python: tuple[str | Path, ...] = ("/qemu", "-L", Path("/system"), Path("/system/usr/bin/python3.11"))
    command = load_command(Runner(python, 11, compiler), hollow, Path("/package"), parse_variant(ARM))
    assert command[:8] == [*python, "-S", "-s", "-B", Path(load_child.__file__)]
    assert command[8:13] == [Path("/package"), "--backend", "cpu", "--path", Path("/torch")]
    # A machine of that architecture starts the same child without the emulator.
    assert (
        load_command(Runner(python[3:], 11, compiler), hollow, Path("/package"), parse_variant(ARM))
        == command[3:]
    )


def test_runner_library_is_its_own_systems_before_the_compilers(tmp_path: Path) -> None:
    (tmp_path / "libz.so.1.2").touch()
    (tmp_path / "libz.so.1").symlink_to("libz.so.1.2")
    runner = Runner((sys.executable,), 11, find_compiler(), libraries=(tmp_path / "none", tmp_path))
    assert runner.library("libz.so.1") == tmp_path / "libz.so.1.2"
    system = runner.library("libc.so.6")
    assert system is not None
    assert system.parent != tmp_path
    assert runner.library("libnowhere.so.1") is None


def test_matrix_lists_load_torches_oldest_first_and_each_emulator_has_a_python_for_some() -> None:
    matrix = read_matrix()
    minors = [torch.minor for torch in matrix.load]
    assert minors == sorted(minors)
    for emulator in matrix.emulator.values():
        assert emulator.arch in matrix.cross
        assert any(
            torch.wheel(emulator.arch) is not None and torch.pythons[0] <= emulator.python <= torch.pythons[1]
            for torch in matrix.load
        )


def test_unique_ids_of_two_variants_with_one_id_names_both() -> None:
    fine, other, twice = unique_ids([("a", "_k_1"), ("b", "_k_2"), ("c", "_k_1")])
    assert fine.passed
    assert other.passed
    assert (twice.passed, twice.sentence) == (False, "its id _k_1 is also that of a")


def test_require_raises_for_failures_and_not_for_what_was_not_run() -> None:
    verdicts = [Verdict("load", None, "not run: no Python"), Verdict("archs", True, "as promised")]
    require("k.so", verdicts)
    with pytest.raises(AuditError, match=r"k\.so: it crashed"):
        require("k.so", [*verdicts, Verdict("load", False, "it crashed")])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package")
    khub("build", TINY, "--select", STABLE, "--out", out)
    return out


CHECKS = {
    "agrees": ("def check(kernel): pass", True, "its operator agrees"),
    "differs": ("def check(kernel): raise AssertionError('Tensor-likes are not close')", False, "not close"),
    "aborts": ("import os\ndef check(kernel): os.abort()", False, "SIGABRT"),
    "exits": ("import os\ndef check(kernel): os._exit(3)", False, "the interpreter failed"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_load_child_in_this_torch_tells_what_the_check_did(name: str, package: Path, tmp_path: Path) -> None:
    source, passed, says = CHECKS[name]
    (tmp_path / "load_check.py").write_text(source + "\n")
    verdict = answer(child(package / "build" / STABLE, "--check", tmp_path / "load_check.py"))
    assert (verdict[0], says in verdict[1]) == (passed, True), verdict


def test_load_child_of_a_kernel_that_registers_elsewhere_names_the_operator(tmp_path: Path) -> None:
    kernel = Path(shutil.copytree(TINY, tmp_path / "tiny-relu"))
    face = kernel / "torch-ext" / "tiny_relu" / "__init__.py"
    face.write_text(
        face.read_text() + '\n_l = torch.library.Library("other", "DEF")\n_l.define("f() -> ()")\n'
    )
    khub("build", kernel, "--select", STABLE, "--out", tmp_path / "package")
    passed, sentence = answer(child(tmp_path / "package" / "build" / STABLE))
    assert not passed
    assert "operators outside torch.ops._tiny_relu_cpu_" in sentence
    assert "other::f" in sentence


def child(variant: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The load child in this interpreter and torch."""
    paths = {Path(torch.__file__).parent.parent, Path(load_child.__file__).parent.parent}
    command = [sys.executable, "-B", load_child.__file__, variant, "--backend", "cpu"]
    command += [word for path in sorted(paths) for word in ("--path", path)]
    return subprocess.run([*map(str, [*command, *arguments])], capture_output=True, text=True)


@pytest.mark.heavy
def test_build_with_load_proves_each_variant_in_hollow_torch(tmp_path: Path) -> None:
    done = khub("build", TINY, "--select", "torch-stable-*-x86_64-*", "--load", "--json", "--out", tmp_path)
    cells = {cell["variant"]: cell for cell in json.loads(done.stdout)["cells"]}
    loads = {name: [g for g in cell["gates"] if g["gate"].startswith("load")] for name, cell in cells.items()}
    assert [g["gate"] for g in loads[STABLE]] == ["load in torch 2.10.0", "load in torch 2.15.0"]
    assert all("agrees with the reference" in g["sentence"] for g in loads[STABLE])
    assert ["every symbol is resolved" in g["sentence"] for g in loads[STABLE.replace("cpu", "cu130")]] == [
        True,
        True,
    ]


@pytest.mark.heavy
def test_build_with_load_for_another_architecture_runs_the_operator_under_qemu(tmp_path: Path) -> None:
    if find_compiler().arch == "aarch64":
        pytest.skip("this machine runs aarch64 itself")
    done = khub("build", TINY, "--select", "*stable*cpu-aarch64*", "--load", "--json", "--out", tmp_path)
    (cell,) = json.loads(done.stdout)["cells"]
    loads = {gate["gate"]: gate["sentence"] for gate in cell["gates"] if gate["gate"].startswith("load")}
    agrees = "it loads and its operator agrees with the reference"
    assert loads == {f"load in torch {release} under qemu": agrees for release in ("2.10.0", "2.15.0")}


@pytest.mark.heavy
def test_audit_with_load_of_a_finished_package_runs_the_check_of_its_source(tmp_path: Path) -> None:
    khub("build", TINY, "--select", "torch213-*-cpu-*", "--out", tmp_path)
    audit = khub("audit", tmp_path, "--load", "--source", TINY)
    assert "load in torch 2.13.0: it loads and its operator agrees with the reference" in audit.stdout
    assert "no operator was run" in khub("audit", tmp_path, "--load").stdout


@pytest.mark.heavy
def test_build_with_load_whose_check_fails_packages_nothing(tmp_path: Path) -> None:
    kernel = Path(shutil.copytree(TINY, tmp_path / "tiny-relu"))
    (kernel / "tests" / "load_check.py").write_text(
        "def check(kernel): assert kernel.relu is None, 'wrong sum'\n"
    )
    out = tmp_path / "package"
    done = khub("build", kernel, "--select", STABLE, "--load", "--out", out, code=AuditError.exit_code)
    assert "wrong sum" in done.stderr
    assert not out.exists()


def khub(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hub_loader", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done
