"""Equal sources give equal packages, and what they were made of is written down."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_matrix.build_toml import read_build_file
from build_matrix.compile import command_lines
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan
from build_matrix.reproduce import compare
from build_matrix.toolchain.cache import ToolchainCache
from build_matrix.toolchain.cuda import CudaToolkit
from build_matrix.toolchain.host import find_compiler
from build_matrix.units import Toolchain
from hub_loader.errors import AuditError
from hub_loader.manifest import sha256_hex

TINY = Path(__file__).with_name("tiny-relu")
STABLE = "torch-stable-abi210-cpu-x86_64-linux"


def khub(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hub_loader", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_check_of_a_source_that_knows_its_own_time_names_the_file_and_the_section(tmp_path: Path) -> None:
    kernel = Path(shutil.copytree(TINY, tmp_path / "tiny-relu"))
    source = kernel / "csrc" / "relu.cpp"
    source.write_text(
        source.read_text().replace("return {};", "if (count < 0) return __TIMESTAMP__;\n  return {};")
    )
    assert "__TIMESTAMP__" in source.read_text()
    done = khub("build", kernel, "--select", STABLE, "--check", "--json", code=AuditError.exit_code)
    (row,) = json.loads(done.stdout)
    assert any(re.search(r"\.abi3\.so differs in .*\.rodata", sentence) for sentence in row["differing"])
    assert any(sentence.startswith("metadata.json differs") for sentence in row["differing"])


@pytest.mark.heavy
def test_check_of_every_variant_finds_the_same_bytes_and_writes_no_package(tmp_path: Path) -> None:
    done = khub("build", TINY, "--check", "--out", tmp_path / "package")
    assert done.stdout.count("5 files, twice the same bytes") == len(
        plan(read_build_file(TINY), read_matrix())[0]
    )
    assert not (tmp_path / "package").exists()


def test_compare_of_packages_with_other_files_names_each(tmp_path: Path) -> None:
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text("same")
        (tmp_path / folder / "own.py").write_text(folder)
    (tmp_path / "left" / "alone.py").touch()
    cell = plan(read_build_file(TINY), read_matrix())[0][0]
    found = compare(cell, tmp_path / "left", tmp_path / "right")
    assert found.equal == 1
    assert found.differing == ("alone.py is in one of the packages only", "own.py differs")


def test_provenance_names_commit_toolchain_and_commands_and_no_place_of_this_machine(tmp_path: Path) -> None:
    khub("build", TINY, "--select", STABLE, "--out", tmp_path)
    origin = json.loads((tmp_path / "build" / STABLE / "metadata.json").read_text())["provenance"]
    assert re.fullmatch(r"[0-9a-f]{40}", origin["kernel"]["commit"])
    digests = {part for part, digest in origin["toolchain"].items() if re.fullmatch(r"[0-9a-f]{64}", digest)}
    assert any(
        part.startswith(("torch-sdk-2.15.0", "torch-headers-2.15.0", "torch-2.15.0")) for part in digests
    )
    assert any("-shared" in command for command in origin["commands"])
    for command in origin["commands"]:
        assert not re.search(r"(^|[ =,:]|-I)/", command)


def test_statement_names_the_digest_of_the_index_and_of_every_library(tmp_path: Path) -> None:
    khub("build", TINY, "--select", "*stable*-cpu-*", "--out", tmp_path)
    statement = json.loads((tmp_path / "provenance.intoto.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    said = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    files = [tmp_path / "index.json", *tmp_path.rglob("*.so")]
    assert said == {p.relative_to(tmp_path).as_posix(): sha256_hex(p.read_bytes()) for p in files}
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {tuple(d["digest"]) for d in dependencies if "digest" in d} == {("gitCommit",), ("sha256",)}


def test_digest_of_a_part_follows_paths_and_bytes_and_is_kept(tmp_path: Path) -> None:
    digests = []
    for number, (name, content) in enumerate((("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"))):
        cache = ToolchainCache(tmp_path / str(number))
        part = cache.provide("part-1.0", "key", lambda f, n=name, c=content: (f / n).write_text(c))  # type: ignore[misc]
        digests.append(cache.digest(part / name))
    assert digests[0] == digests[1]
    assert digests[0][0] == "part-1.0"
    assert len({digest for _, digest in digests}) == 3
    (part / "a").write_text("changed behind the cache's back")
    assert cache.digest(part) == digests[-1]


def test_commands_name_no_place_of_this_machine_where_the_cuda_runtime_lies_beside_its_toolkit() -> None:
    """As it does for another architecture."""
    compiler = find_compiler()
    cuda = CudaToolkit(
        (13, 0), Path("/cache/cuda/nvidia/cu13"), Path("/cache/runtime-aarch64/nvidia/cu13/lib")
    )
    tools = Toolchain(compiler, {}, Path("/cache/stubs"), (), cuda)
    link = [compiler.path, "-shared", cuda.lib / cuda.runtime, cuda.root / "lib64" / "libdevice.a"]
    (line,) = command_lines(read_build_file(TINY), [], link, tools)
    assert line == f"{compiler.path.name} -shared cuda/lib/libcudart.so.13 cuda/lib64/libdevice.a"
