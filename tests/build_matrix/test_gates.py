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
from build_matrix.load import answer, promised
from build_matrix.matrix import LoadTorch, read_matrix
from hub_loader.errors import AuditError
from hub_loader.variant import parse_variant

TINY = Path(__file__).with_name("tiny-relu")
STABLE = "torch-stable-abi210-cpu-x86_64-linux"
TORCHES = tuple(
    LoadTorch(release, cuda, (3, 10), (3, 14))
    for release, cuda in (("2.5.1", (12, 4)), ("2.10.0", (12, 8)), ("2.11.0", (13, 0)), ("2.15.0", (13, 2)))
)


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
        ("torch-stable-abi210-cpu-aarch64-linux", "needs a machine of architecture aarch64"),
        ("torch-cuda", "only what binds to torch's libraries"),
        ("cp311-cpu-x86_64-linux", "only what binds to torch's libraries"),
    ],
)
def test_promised_of_what_cannot_be_loaded_here_says_why(variant: str, reason: str) -> None:
    torches, why = promised(parse_variant(variant), TORCHES, "x86_64")
    assert torches == []
    assert reason in why


def test_matrix_lists_load_torches_oldest_first() -> None:
    minors = [torch.minor for torch in read_matrix().load]
    assert minors == sorted(minors)


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
    done = khub("build", TINY, "--select", "torch-stable-*", "--load", "--json", "--out", tmp_path)
    cells = {cell["variant"]: cell for cell in json.loads(done.stdout)["cells"]}
    loads = {name: [g for g in cell["gates"] if g["gate"].startswith("load")] for name, cell in cells.items()}
    assert [g["gate"] for g in loads[STABLE]] == ["load in torch 2.10.0", "load in torch 2.15.0"]
    assert all("agrees with the reference" in g["sentence"] for g in loads[STABLE])
    assert ["every symbol is resolved" in g["sentence"] for g in loads[STABLE.replace("cpu", "cu130")]] == [
        True,
        True,
    ]


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
