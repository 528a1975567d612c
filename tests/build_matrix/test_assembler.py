"""CUDA code for devices that are newer than the compiler: assembled out of its PTX by a newer ptxas."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from build_matrix.audit import read_library
from build_matrix.build import toolchain
from build_matrix.build_toml import read_build_file
from build_matrix.capabilities import capability_key, known
from build_matrix.compile import compile_cell
from build_matrix.matrix import Cell, read_matrix
from build_matrix.package import write_variant
from build_matrix.plan import plan, select
from build_matrix.provenance import Provenance, kernel_id
from build_matrix.toolchain import cuda
from build_matrix.toolchain.cache import ToolchainCache
from build_matrix.toolchain.host import find_compiler
from build_matrix.units import gencode, units
from hub_loader.errors import CompileError
from hub_loader.manifest import parse_metadata

TINY = Path(__file__).with_name("tiny-relu")
MATRIX = read_matrix()
CUDA_12, CUDA_13 = MATRIX.cuda[(12, 4)], MATRIX.cuda[(13, 0)]
SM_80, SM_90 = "-gencode=arch=compute_80,code=[sm_80]", "-gencode=arch=compute_90,code=[sm_90]"
SM_90_PTX = "-gencode=arch=compute_90,code=[sm_90,compute_90]"
PTX = "--image3=kind=ptx,sm=90,file=k.compute_90.ptx"
ELF = "--image3=kind=elf,sm=90,file=k.cubin"


def cuda_12_cell(folder: Path) -> Cell:
    return select(plan(read_build_file(folder), MATRIX)[0], ["*stable*cu124-x86_64*"])[0]


def test_matrix_supports_all_that_an_assembler_knows_and_by_default_compiles_the_newest() -> None:
    for release in MATRIX.cuda.values():
        assert list(release.supported) == sorted(release.supported, key=capability_key)
        assert set(release.capabilities) <= set(release.supported)
        assert release.capabilities == ("8.0", "9.0", "10.0", "12.0")
        if release.assembler is not None:
            assert {*release.assembler.capabilities, release.assembler.ptx} <= set(release.supported)
            assert release.assembler.ptx not in release.assembler.capabilities
    assert CUDA_12.assembler is not None and CUDA_13.assembler is None


@pytest.mark.parametrize(
    ("named", "on_12", "on_13"),
    [
        (["8.0", "10.0", "12.0"], ("8.0", "10.0", "12.0"), ("8.0", "10.0", "12.0")),
        (["9.0a", "9.0+PTX"], ("9.0a", "9.0+PTX"), ("9.0a", "9.0+PTX")),
        (["10.0a", "10.0f", "12.0a+PTX"], (), ("10.0a", "10.0f", "12.0a+PTX")),
        (["12.0+PTX", "12.0"], ("12.0",), ("12.0+PTX", "12.0")),
    ],
)
def test_known_of_assembled_capabilities_is_plain_code_alone(
    named: list[str], on_12: tuple[str, ...], on_13: tuple[str, ...]
) -> None:
    assert known(named, CUDA_12) == on_12
    assert known(named, CUDA_13) == on_13


@pytest.mark.parametrize(
    ("capabilities", "flags"),
    [
        (["8.0", "9.0"], [SM_80, SM_90]),
        (["9.0", "12.0"], [SM_90_PTX, "--from-ptx=90", "--assemble=120"]),
        (["9.0+PTX", "10.0"], [SM_90_PTX, "--from-ptx=90", "--assemble=100", "--keep-ptx"]),
        (
            ["8.0", "9.0a", "10.0"],
            [
                SM_80,
                "-gencode=arch=compute_90a,code=[sm_90a]",
                "-gencode=arch=compute_90,code=[compute_90]",
                "--from-ptx=90",
                "--assemble=100",
            ],
        ),
    ],
)
def test_gencode_asks_nvcc_for_the_ptx_that_newer_code_is_made_of(
    capabilities: list[str], flags: list[str]
) -> None:
    expected = [flag if flag.startswith("-gencode") else f"-Xfatbin={flag}" for flag in flags]
    assert gencode(capabilities, CUDA_12) == expected


def test_gencode_of_a_compiler_that_knows_all_asks_for_no_assembler() -> None:
    assert gencode(["9.0", "12.0"], CUDA_13) == [SM_90, "-gencode=arch=compute_120,code=[sm_120]"]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The script among programs that print how they are called; its ptxas writes the file after -o."""
    shutil.copyfile(Path(cuda.__file__).with_name("fatbinary.sh"), tmp_path / "fatbinary")
    for name, more in (
        ("own/fatbinary", ""),
        ("newer/fatbinary", "cat ./*.cubin"),
        ("newer/ptxas", 'for last do :; done; echo >"$last"'),
    ):
        program = tmp_path / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n{more}\n')
        program.chmod(0o755)
    (tmp_path / "fatbinary").chmod(0o755)
    (tmp_path / "work").mkdir()
    return tmp_path


def fatbinary(tools: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [tools / "fatbinary", *arguments]
    return subprocess.run(command, cwd=tools / "work", capture_output=True, text=True)


def test_fatbinary_that_is_asked_for_nothing_newer_is_the_compilers_own(tools: Path) -> None:
    assert fatbinary(tools, ["-64", PTX, ELF]).stdout == f"own/fatbinary -64 {PTX} {ELF}\n"


@pytest.mark.parametrize(("keep", "kept"), [([], ""), (["--keep-ptx"], f"{PTX} ")])
def test_fatbinary_assembles_the_ptx_with_the_compilers_options_and_cleans_up(
    tools: Path, keep: list[str], kept: str
) -> None:
    asked = ["--from-ptx=90", "--assemble=100", "--assemble=120", *keep]
    done = fatbinary(tools, ["-64", *asked, "--cmdline=-O2 -v ", PTX, ELF])
    made = [f"k.compute_90.sm_{arch}.newer.cubin" for arch in (100, 120)]
    images = " ".join(
        f"--image3=kind=elf,sm={arch},file={name}" for arch, name in zip((100, 120), made, strict=True)
    )
    assert done.stdout.splitlines()[:3] == [
        f"newer/ptxas -arch=sm_100 -m64 -O2 -v k.compute_90.ptx -o {made[0]}",
        f"newer/ptxas -arch=sm_120 -m64 -O2 -v k.compute_90.ptx -o {made[1]}",
        f"newer/fatbinary --compress-mode=speed -64 --cmdline=-O2 -v  {kept}{ELF} {images}",
    ]
    assert (done.returncode, list((tools / "work").iterdir())) == (0, [])


def test_fatbinary_whose_ptxas_fails_fails_with_its_message_and_cleans_up(tools: Path) -> None:
    (tools / "newer" / "ptxas").write_text('#!/bin/sh\ntouch "${5}"\necho "ptxas fatal: no" >&2\nexit 7\n')
    done = fatbinary(tools, ["--from-ptx=90", "--assemble=100", PTX])
    assert (done.returncode, done.stdout, done.stderr) == (
        7,
        "",
        "ptxas fatal: no\nfatbinary: error: the PTX of compute_90 cannot be assembled for sm_100\n",
    )
    assert list((tools / "work").iterdir()) == []


def test_fatbinary_without_the_ptx_to_assemble_says_which_is_missing(tools: Path) -> None:
    done = fatbinary(tools, ["--from-ptx=90", "--assemble=100", PTX.replace("sm=90", "sm=90a"), ELF])
    assert done.returncode == 1
    assert done.stderr == "fatbinary: error: nvcc made no PTX of compute_90 to assemble for 100\n"


def with_capabilities(tmp_path: Path, name: str, capabilities: str) -> Path:
    folder = Path(shutil.copytree(TINY, tmp_path / name))
    text = (folder / "build.toml").read_text()
    (folder / "build.toml").write_text(text.replace('"8.0", "9.0+PTX"', capabilities))
    return folder


@pytest.mark.heavy
def test_build_with_an_assembler_holds_what_it_claims_and_twice_the_same_bytes(tmp_path: Path) -> None:
    cache, made = ToolchainCache(), []
    for place in ("first", "second/deeper"):
        build = read_build_file(with_capabilities(tmp_path, place, '"8.0", "9.0", "10.0", "12.0"'))
        cell = cuda_12_cell(build.folder)
        store = tmp_path / place / "store"
        store.mkdir()
        name = kernel_id(build, cell)
        library = compile_cell(
            build, cell, name, toolchain(cache, find_compiler(), MATRIX, cell), store
        ).library
        folder = write_variant(build, cell, name, library, tmp_path / place / "out", Provenance(None, False))
        metadata = parse_metadata((folder / "metadata.json").read_bytes(), origin=place)
        assert metadata.backend.archs == read_library(library).capabilities == ("8.0", "9.0", "10.0", "12.0")
        made.append(library.read_bytes())
    assert made[0] == made[1]


@pytest.mark.heavy
def test_object_of_other_assembled_archs_has_another_key(tmp_path: Path) -> None:
    build = read_build_file(with_capabilities(tmp_path, "kernel", '"9.0", "10.0"'))
    cell = cuda_12_cell(build.folder)
    more = tuple(
        replace(c, cuda_capabilities=(*c.cuda_capabilities, "12.0")) if c.backend == "cuda" else c
        for c in build.components
    )
    tools = toolchain(ToolchainCache(), find_compiler(), MATRIX, cell)
    keys = [
        [unit.key for unit in units(one, cell, "_id", tools) if unit.source.suffix == ".cu"]
        for one in (build, replace(build, components=more))
    ]
    assert keys[0] != keys[1]


@pytest.mark.heavy
def test_build_whose_ptx_the_newer_ptxas_refuses_fails_with_its_message(tmp_path: Path) -> None:
    build = read_build_file(with_capabilities(tmp_path, "kernel", '"12.0"'))
    with (build.folder / "csrc" / "relu.cu").open("a") as file:
        file.write('__global__ void broken() { asm volatile("unheard.of;"); }\n')
    cell = cuda_12_cell(build.folder)
    tools = toolchain(ToolchainCache(), find_compiler(), MATRIX, cell)
    with pytest.raises(
        CompileError, match=r"ptxas \w+\.o\.ptx, line \d+; error .*Unknown modifier '\.of'"
    ) as failed:
        compile_cell(build, cell, kernel_id(build, cell), tools, tmp_path)
    assert failed.value.log is not None
    assert "the PTX of compute_90 cannot be assembled for sm_120" in failed.value.log.read_text()
