"""Stubs for what a hollow torch lacks, and which interpreter loads it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from build_matrix.toolchain.hollow import Links, missing_libraries, read_links, write_stubs
from build_matrix.toolchain.host import find_compiler
from build_matrix.toolchain.interpreters import find_interpreter
from build_matrix.toolchain.runner import Runner

KEPT = {
    "libkept.so": Links(
        needed=("libc.so.6", "libcudart.so.12"),
        undefined=(
            ("malloc", "GLIBC_2.2.5", "libc.so.6"),
            ("cudaMalloc", "libcudart.so.12", "libcudart.so.12"),
            ("PyErr_Clear", None, None),
            ("_ZN2at4cuda4warpEv", None, None),
            ("defined_by_other", None, None),
        ),
        defined=frozenset({"own"}),
    ),
    "libc.so.6": Links((), (), frozenset({"malloc"})),
    "libother.so": Links((), (), frozenset({"defined_by_other"})),
}


def test_missing_libraries_puts_each_symbol_where_it_is_looked_for() -> None:
    assert missing_libraries(KEPT, {"aoti_torch_cuda_sort", "own"}) == {
        "libcudart.so.12": [("cudaMalloc", "libcudart.so.12")],
        "libtorch_cuda.so": [("_ZN2at4cuda4warpEv", None), ("aoti_torch_cuda_sort", None)],
    }


def test_write_stubs_lets_a_library_load_whose_dependencies_are_gone(tmp_path: Path) -> None:
    """The library is linked against a real dependency with symbol versions, which is then deleted."""
    (tmp_path / "versions.map").write_text("GONE_1 { global: gone; };\n")
    (tmp_path / "gone.cpp").write_text('extern "C" int* gone() { static int value = 1; return &value; }\n')
    (tmp_path / "cuda.cpp").write_text(
        "namespace at { struct Cuda { Cuda(); virtual ~Cuda(); }; Cuda::Cuda() {} Cuda::~Cuda() {} }\n"
    )
    user = (
        "#include <typeinfo>\n"
        'extern "C" int* gone();\n'
        "namespace at { struct Cuda { Cuda(); virtual ~Cuda(); }; }\n"
        "static int& reference = *gone();\n"
        "struct Write { Write() { reference = 7; } } write;\n"
        'extern "C" const char* name() { return typeid(*new at::Cuda).name(); }\n'
        'extern "C" const char* static_name() { return typeid(at::Cuda).name(); }\n'
        'extern "C" int value() { return reference; }\n'
    )
    (tmp_path / "user.cpp").write_text(user)
    shared = ["g++", "-shared", "-fPIC", "-Wl,-rpath,$ORIGIN"]
    versions = "-Wl,--version-script=versions.map,-soname,libgone.so.1"
    for command in (
        [*shared, versions, "gone.cpp", "-o", "libgone.so.1"],
        [*shared, "-Wl,-soname,libtorch_cuda.so", "cuda.cpp", "-o", "libtorch_cuda.so"],
        [*shared, "user.cpp", "-L.", "-l:libgone.so.1", "-l:libtorch_cuda.so", "-o", "libuser.so"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "libgone.so.1").unlink()
    (tmp_path / "libtorch_cuda.so").unlink()
    runner = Runner((sys.executable,), sys.version_info.minor, find_compiler())
    links = read_links(tmp_path / "libuser.so")
    assert ("gone", "GONE_1", "libgone.so.1") in links.undefined
    write_stubs(runner, tmp_path, [tmp_path / "libuser.so"], ())
    library = ctypes.CDLL(str(tmp_path / "libuser.so"), mode=os.RTLD_NOW)
    library.name.restype = library.static_name.restype = ctypes.c_char_p
    assert library.value() == 7  # a static initialiser wrote through what a stub returned
    assert library.static_name() == b"N2at4CudaE"
    assert library.name() == b"unknown"  # constructed by a stub, with a table of its own


def test_find_interpreter_prefers_the_running_one_and_gives_none_out_of_range() -> None:
    here = sys.version_info.minor
    found = find_interpreter(here, here)
    assert found is not None
    assert (found.path, found.minor) == (Path(sys.executable), here)
    assert find_interpreter(90, 99) is None


def test_find_interpreter_on_path_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "python3.91").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.91").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find_interpreter(91, 91) is None
