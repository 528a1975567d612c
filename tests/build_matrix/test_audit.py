"""The audit: what a built library promises, read from the ELF file itself."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from build_matrix.audit import Library, Promise, leaked_paths, read_library, violations
from build_matrix.matrix import read_matrix
from build_matrix.toolchain.stubs import allowed_version
from hub_loader.errors import AuditError
from hub_loader.variant import Variant, parse_variant

BASELINE = read_matrix().baseline
CPU = parse_variant("torch-stable-abi210-cpu-x86_64-linux")
CUDA = parse_variant("torch-stable-abi210-cu130-x86_64-linux")
GOOD = Library(
    machine="EM_X86_64",
    needed=("libtorch_cpu.so", "libstdc++.so.6", "libc.so.6"),
    runpath=None,
    versions=(("libc.so.6", "GLIBC_2.14"), ("libstdc++.so.6", "GLIBCXX_3.4.21")),
    undefined=("PyModuleDef_Init", "aoti_torch_get_dim", "torch_library_impl"),
    exported=("PyInit__k_cpu_1",),
    capabilities=(),
)


def promise(variant: Variant, *capabilities: str) -> Promise:
    return Promise(variant, "_k_cpu_1", BASELINE, capabilities)


def test_violations_of_a_library_that_keeps_its_promises_is_empty() -> None:
    assert violations(GOOD, promise(CPU)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"machine": "EM_AARCH64"}, "it is for EM_AARCH64, not x86_64"),
        ({"needed": ("libcudart.so.13",)}, "it needs libcudart.so.13"),
        ({"needed": ("libgomp.so.1",)}, "it needs libgomp.so.1"),
        ({"versions": (("libc.so.6", "GLIBC_2.34"),)}, "it needs GLIBC_2.34 of libc.so.6"),
        ({"versions": (("libstdc++.so.6", "GLIBCXX_3.4.26"),)}, "GLIBCXX_3.4.26"),
        ({"runpath": "/home/me/lib"}, "search path '/home/me/lib'"),
        (
            {"undefined": ("_ZN2at4_ops3add4callE",)},
            "which a user of torch-stable-abi210-cpu-x86_64-linux may not have",
        ),
        ({"exported": ("PyInit__k_cpu_1", "leaked")}, "it exports PyInit__k_cpu_1, leaked"),
        ({"capabilities": ("9.0",)}, "compute capabilities 9.0, its metadata says none"),
    ],
)
def test_violations_of_a_broken_promise_names_it(change: dict[str, object], says: str) -> None:
    found = violations(replace(GOOD, **change), promise(CPU))  # type: ignore[arg-type]
    assert len(found) == 1
    assert says in found[0]


def test_violations_of_a_cuda_variant_allows_only_its_own_cuda() -> None:
    library = replace(GOOD, needed=("libcudart.so.13", "libtorch_cuda.so"), capabilities=("8.0", "9.0"))
    assert violations(library, promise(CUDA, "8.0", "9.0")) == []
    older = replace(library, needed=("libcudart.so.12",))
    assert "libcudart.so.12" in violations(older, promise(CUDA, "8.0", "9.0"))[0]
    assert "8.0, 9.0, its metadata says 8.0" in violations(library, promise(CUDA, "8.0"))[0]


def test_read_library_of_an_ordinary_link_shows_what_the_compiler_of_today_does(tmp_path: Path) -> None:
    source = tmp_path / "x.cpp"
    source.write_text(
        "#include <sstream>\nint f() { std::ostringstream s; s << 1; return s.str().size(); }\n"
    )
    library = tmp_path / "x.so"
    command = ["g++", "-shared", "-fPIC", "-O2", "-s", f"-Wl,-rpath,{tmp_path}", source, "-o", library]
    subprocess.run(command, check=True)
    read = read_library(library)
    assert "libstdc++.so.6" in read.needed
    assert read.runpath == str(tmp_path)
    assert any(symbol.startswith("_Z1f") for symbol in read.exported)
    assert leaked_paths(library.read_bytes(), [tmp_path, Path("/nowhere/else")]) == [
        f"it contains the path {tmp_path} of the build machine"
    ]


def test_read_library_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(b"not an ELF file")
    with pytest.raises(AuditError, match=r"x\.so is not a shared library"):
        read_library(path)


@pytest.mark.parametrize(
    ("version", "allowed"),
    [
        ("GLIBC_2.28", (2, 28)),
        ("GLIBC_2.29", None),
        ("GLIBC_2.3.4", (2, 3, 4)),
        ("GLIBC_PRIVATE", None),
        ("CXXABI_1.3.11", (1, 3, 11)),
        ("CXXABI_TM_1", None),
        ("GCC_12.0.0", None),
        ("", None),
    ],
)
def test_allowed_version_follows_manylinux_2_28(version: str, allowed: tuple[int, ...] | None) -> None:
    assert allowed_version(version, BASELINE) == allowed
