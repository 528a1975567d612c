"""The environment is described without importing torch; GPUs as CUDA_VISIBLE_DEVICES shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_loader import Torch, detect_environment
from hub_loader.environment import _torch
from hub_loader.libc import elf_interpreter, musl_version, parse_glibc, parse_musl
from hub_loader.nvml import Gpu, parse_cuda_version, select_visible
from hub_loader.torch_files import leading_version, local_cuda, local_rocm, parse_torch, parse_xpu

A100, H100 = Gpu("GPU-aaaa-1", (8, 0)), Gpu("GPU-bbbb-2", (9, 0))


def torch_folder(folder: Path, version: str, libc10: bytes | None) -> ModuleSpec:
    (folder / "lib").mkdir()
    (folder / "version.py").write_text(version)
    if libc10 is not None:
        (folder / "lib/libc10.so").write_bytes(libc10)
    return ModuleSpec("torch", None, origin=str(folder / "__init__.py"))


def test_detect_environment_when_torch_is_installed_then_agrees_with_torch_itself() -> None:
    code = (
        "import sys, hub_loader\n"
        "found = hub_loader.detect_environment().torch\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "print(found.release == torch.__version__, found.cxx11_abi == torch._C._GLIBCXX_USE_CXX11_ABI,\n"
        "      (found.cuda is None) == (torch.version.cuda is None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"


def test_detect_environment_then_names_this_interpreter_and_machine() -> None:
    environment = detect_environment()
    assert environment.python.startswith(f"cp3{sys.version_info.minor}")
    assert environment.os == sys.platform
    assert environment.glibc is not None


@pytest.mark.parametrize(
    ("version", "symbol", "torch"),
    [
        (
            "__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n",
            b"\0_ZN3c1015SetUsageMessageERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE\0",
            Torch((2, 11), "2.11.0+cu130", (13, 0), True),
        ),
        (
            "__version__ = '2.5.1'\ncuda = '12.4'\n",
            b"\0_ZN3c1015SetUsageMessageERKSs\0",
            Torch((2, 5), "2.5.1", (12, 4), False),
        ),
        (
            "__version__ = '2.9.1+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4.43483-a187df25c'\n",
            None,
            Torch((2, 9), "2.9.1+rocm6.4", None, None, rocm=(6, 4)),
        ),
        (
            "__version__ = '2.9.1+xpu'\ncuda = None\nhip = None\nxpu: Optional[str] = '20250201'\n",
            None,
            Torch((2, 9), "2.9.1+xpu", None, None, xpu=(2025, 2)),
        ),
        ("__version__ = '2.9.1+cu128'\n", None, Torch((2, 9), "2.9.1+cu128", (12, 8), None)),
        ("__version__ = '2.16.0a0+git1234'\n", None, Torch((2, 16), "2.16.0a0+git1234", None, None)),
    ],
)
def test_torch_when_described_from_its_files_then_runs_none_of_them(
    tmp_path: Path, version: str, symbol: bytes | None, torch: Torch
) -> None:
    spec = torch_folder(tmp_path, version + "raise SystemExit('was run')\n", symbol)
    assert _torch(spec) == torch


@pytest.mark.parametrize(
    "version", ["", "__version__ = 'unknown'", "not python at all (", "\0", "(" * 100_000]
)
def test_torch_when_the_folder_is_no_torch_then_there_is_none(tmp_path: Path, version: str) -> None:
    assert _torch(torch_folder(tmp_path, version, None)) is None


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strcpy(text, "570.86.15"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12080; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(0x700000000000 + index); return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = device == (void *)0x700000000001 ? 9 : 8; *minor = 0; return 0;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    if (length < 8) return 7;
    strcpy(uuid, device == (void *)0x700000000001 ? "GPU-bbb" : "GPU-aaa"); return 0;
}
"""


def test_detect_environment_when_a_driver_is_there_then_asks_it_through_nvml(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    code = (
        "import hub_loader; seen = hub_loader.detect_environment()\n"
        "print(seen.compute_capabilities, seen.driver, seen.driver_cuda)"
    )
    for selection, seen in (("0,1", "((8, 0), (9, 0))"), ("GPU-b", "((9, 0),)"), ("", "()")):
        environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": selection}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{seen} 570.86.15 (12, 8)\n"


@pytest.mark.parametrize(
    ("gpus", "selection", "visible"),
    [
        ((), None, ()),
        ((), "0", ()),
        ((A100, H100), None, ((8, 0), (9, 0))),
        ((A100, H100), "1", ((9, 0),)),
        ((A100, H100), "1,0", ((9, 0), (8, 0))),
        ((A100, H100), "1,-1,0", ((9, 0),)),
        ((A100, H100), "5", ()),
        ((A100, H100), "GPU-bbbb", ((9, 0),)),
        ((A100, H100), "GPU-", ()),
        ((A100, H100), "MIG-cccc", ((8, 0), (9, 0))),
        ((A100, H100), "NoDevFiles", ()),
    ],
)
def test_select_visible_when_numbered_by_bus_then_follows_the_list(
    gpus: tuple[Gpu, ...], selection: str | None, visible: tuple[tuple[int, int], ...]
) -> None:
    assert select_visible(gpus, selection, by_bus=True) == visible


def test_select_visible_when_cuda_numbers_different_gpus_by_speed_then_all_count() -> None:
    assert select_visible((A100, H100), "0", by_bus=False) == ((8, 0), (9, 0))
    assert select_visible((H100, H100), "0", by_bus=False) == ((9, 0),)


_part = st.integers(0, 99)
_version = st.tuples(_part, _part)
_toolkits = st.one_of(
    st.tuples(st.just("cuda"), st.tuples(st.integers(10, 99), _part)),
    st.tuples(st.just("hip"), st.tuples(st.integers(1, 9), _part)),
    st.tuples(st.just("xpu"), st.tuples(st.integers(2024, 2099), st.integers(0, 12))),
    st.just((None, None)),
)


@given(
    _version,
    _part,
    _toolkits,
    st.sampled_from(["", ": Optional[str]"]),
    st.sampled_from("'\""),
    st.booleans(),
)
def test_parse_torch_when_a_toolkit_is_written_in_any_style_then_reads_it_back(
    version: tuple[int, int], patch: int, toolkit: tuple, annotation: str, quote: str, local: bool
) -> None:
    name, number = toolkit
    spelled = {"cuda": "cu{}{}", "hip": "rocm{}.{}", "xpu": "xpu", None: "cpu"}[name].format(*number or ())
    release = f"{version[0]}.{version[1]}.{patch}" + (f"+{spelled}" if local else "")
    values = dict.fromkeys(("cuda", "hip", "xpu"), "None")
    if name is not None:
        text = f"{number[0]}{number[1]:02}01" if name == "xpu" else f"{number[0]}.{number[1]}.1234-abc"
        values[name] = f"{quote}{text}{quote}"
    lines = [f"__version__ = {quote}{release}{quote}", *(f"{k}{annotation} = {v}" for k, v in values.items())]
    torch = parse_torch("\n".join(lines), True)
    assert (torch.version, torch.release) == (version, release)
    found = {"cuda": torch.cuda, "hip": torch.rocm, "xpu": torch.xpu}
    assert found == {key: number if key == name else None for key in found}
    assert torch.backend == {"hip": "rocm", None: "cpu"}.get(name, name)


@given(st.integers(10, 99), _part, st.sampled_from(["", ".with.pypi.cudnn"]))
def test_local_versions_name_their_toolkit_and_no_other(major: int, minor: int, rest: str) -> None:
    assert local_cuda(f"2.9.1+cu{major}{minor}{rest}") == (major, minor)
    assert local_rocm(f"2.9.1+rocm{major}.{minor}") == (major, minor)
    assert local_rocm(f"2.9.1+cu{major}{minor}") is local_cuda(f"2.9.1+rocm{major}.{minor}") is None
    assert local_cuda("2.9.1") is local_cuda("2.9.1+cpu") is local_rocm("2.9.1+xpu") is None


@given(st.text(), st.binary(max_size=200))
def test_the_parsers_when_given_anything_then_never_raise(text: str, data: bytes) -> None:
    for parse in (leading_version, local_cuda, local_rocm, parse_xpu, parse_glibc, parse_musl):
        parse(text)
    parse_torch(text, None)
    parse_torch(f"__version__ = {text!r}", None)
    elf_interpreter(data)
    elf_interpreter(b"\x7fELF\x02\x01" + data)


@given(st.integers(1, 99), _part)
def test_parse_cuda_version_then_is_the_inverse_of_cudas_encoding(major: int, minor: int) -> None:
    assert parse_cuda_version(major * 1000 + minor * 10) == (major, minor)
    assert parse_cuda_version(0) is None


@given(st.lists(st.sampled_from([A100, H100]), max_size=4), st.text(max_size=12), st.booleans())
def test_select_visible_when_given_any_selection_then_shows_only_gpus_that_are_there(
    gpus: list[Gpu], selection: str, by_bus: bool
) -> None:
    seen = select_visible(gpus, selection, by_bus=by_bus)
    assert set(seen) <= {gpu.compute_capability for gpu in gpus}


def test_libc_versions_are_read_from_what_each_library_says() -> None:
    assert parse_glibc("glibc 2.36") == (2, 36)
    assert parse_glibc("NPTL 2.36") is None
    assert parse_musl("musl libc (x86_64)\nVersion 1.2.4\nDynamic Program Loader\nUsage: …\n") == (1, 2)
    assert parse_musl("glibc\nVersion 1.2.4") is None
    assert elf_interpreter(Path(sys.executable).read_bytes()).rpartition("/")[2].startswith("ld-linux")
    assert musl_version(Path(sys.executable)) is None


def test_musl_version_when_the_interpreter_names_musls_loader_then_asks_it(tmp_path: Path) -> None:
    loader = tmp_path / "ld-musl-x86_64.so.1"
    loader.write_text("#!/bin/sh\nprintf 'musl libc (x86_64)\\nVersion 1.2.5\\nUsage\\n' >&2\nexit 1\n")
    loader.chmod(0o755)
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    program = tmp_path / "program"
    options = ["-o", program, tmp_path / "main.c", f"-Wl,--dynamic-linker={loader}"]
    subprocess.run(["gcc", *options], check=True)
    assert musl_version(program) == (1, 2)
