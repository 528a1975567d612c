"""The audit: what a library needs is read from what the dynamic linker reads, whoever stripped it.

The peer's builder is Rust and Nix; of it only the check that it runs on what it built can be had as a wheel.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import pip

from build_matrix.audit import Promise, read_library, violations
from build_matrix.matrix import read_matrix
from hub_loader import detect_environment
from hub_loader.variant import parse_variant

CHECK = "kernel-abi-check==0.14.1"
# What the variant's name promises no user: too new a symbol of glibc, one that CPython keeps to itself, OpenMP.
SOURCE = "int too_new(void) { return 0; }\n"
USER = """
extern int too_new(void), PyFrame_New(void), omp_get_num_threads(void);
int f(void) { return too_new() + PyFrame_New() + omp_get_num_threads(); }
"""
ASK = """
import json, sys
import kernel_abi_check
file = kernel_abi_check.ObjectFile(sys.argv[1])
print(json.dumps([s.name for s in [*file.check_manylinux("manylinux_2_28"), *file.check_python_abi("3.9")]]))
"""


def compiled(folder: Path, *, is_stripped: bool) -> Path:
    """A library that needs `too_new` of GLIBC_2.34, whatever the libc of this machine, and two more."""
    (folder / "libc.c").write_text(SOURCE)
    (folder / "user.c").write_text(USER)
    (folder / "libc.map").write_text("GLIBC_2.34 { global: too_new; local: *; };\n")
    script, stub, library = folder / "libc.map", folder / "libc.so.6", folder / "_demo_cpu_1.abi3.so"
    link = ["gcc", "-shared", "-fPIC", "-nostdlib"]
    subprocess.run(
        [*link, "-Wl,-soname,libc.so.6", f"-Wl,--version-script={script}", folder / "libc.c", "-o", stub],
        check=True,
    )
    subprocess.run([*link, folder / "user.c", "-o", library, stub, "-lgomp"], check=True)
    if is_stripped:
        subprocess.run(["strip", library], check=True)
    return library


@pytest.fixture(scope="module")
def check(stock_python: Path) -> Callable[[Path], list[str]]:
    """The names that the peer's check complains about."""
    python = stock_python
    pip(python, "install", "--no-deps", CHECK)

    def ask(library: Path) -> list[str]:
        done = subprocess.run([python, "-c", ASK, library], capture_output=True, text=True, check=True)
        return [str(name) for name in json.loads(done.stdout)]

    return ask


@pytest.mark.parametrize("is_stripped", [False, True])
def test_audit_of_a_library_says_the_same_when_it_is_stripped(tmp_path: Path, is_stripped: bool) -> None:
    variant = parse_variant(f"torch-stable-abi210-cpu-{detect_environment().arch}-linux")
    promise = Promise(variant, "_demo_cpu_1", read_matrix().baseline, ())
    found = "\n".join(violations(read_library(compiled(tmp_path, is_stripped=is_stripped)), promise))
    for wanted in ("GLIBC_2.34 of libc.so.6", "the symbol PyFrame_New", "it needs libgomp.so.1"):
        assert wanted in found


@pytest.mark.slow
def test_check_of_the_peer_sees_nothing_in_a_stripped_library_and_no_needed_library_ever(
    check: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    assert sorted(check(compiled(tmp_path, is_stripped=False))) == ["PyFrame_New", "too_new"]
    assert check(compiled(tmp_path, is_stripped=True)) == []
