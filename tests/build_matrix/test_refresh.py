"""New torch releases become lines of the matrix."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build_matrix.matrix import MATRIX_FILE, TorchWheel, read_matrix
from build_matrix.refresh import add_lines, line, missing_releases, newest_of_unknown, propose


def test_newest_of_unknown_takes_the_newest_patch_of_each_new_minor_series() -> None:
    versions = ["2.17.0", "2.16.1", "2.16.0", "2.16.2rc1", "2.13.0+cpu", "2.15.1", "2.4.1", "1.13.1"]
    assert newest_of_unknown(versions, [(2, 5), (2, 15)]) == ["2.16.1", "2.17.0"]


@pytest.mark.parametrize(
    ("requirement", "cuda"),
    [
        ("nvidia-cuda-runtime-cu12 (==12.4.127) ; platform_machine == 'x86_64'", "12.4"),
        ("nvidia-cuda-runtime==13.0.96; platform_machine == 'x86_64'", "13.0"),
        ("cuda-toolkit[cublas,cudart]==13.2.1; platform_machine == 'x86_64'", "13.2"),
    ],
)
def test_line_reads_cuda_off_what_the_wheel_requires(requirement: str, cuda: str) -> None:
    text = line(
        "2.16.0",
        [(3, 11), (3, 15)],
        {"x86_64": ("filelock", requirement), "aarch64": ("filelock", requirement)},
    )
    assert text == (
        '    { release = "2.16.0", python = "3.11-3.15", '
        f'x86_64 = {{ cuda = "{cuda}", cxx11-abi = true }}, aarch64 = {{ cxx11-abi = true }} }},'
    )


def test_add_lines_gives_a_matrix_with_the_release_and_all_else_as_it_was(tmp_path: Path) -> None:
    path = Path(shutil.copy(MATRIX_FILE, tmp_path))
    add_lines([line("2.16.0", [(3, 11), (3, 15)], {"x86_64": ("nvidia-cuda-runtime==13.2.1",)})], path)
    before, after = read_matrix(), read_matrix(path)
    assert after.torch[:-1] == before.torch
    assert after.torch[-1].minor == (2, 16)
    assert after.torch[-1].wheels == (TorchWheel("x86_64", (13, 2), True),)
    assert (after.cuda, after.cross) == (before.cuda, before.cross)


@pytest.mark.heavy
def test_propose_for_a_release_that_the_matrix_has_gives_its_line() -> None:
    assert missing_releases(read_matrix()) == []
    assert propose("2.10.0") + "\n" in MATRIX_FILE.read_text(encoding="utf-8")
