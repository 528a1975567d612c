"""The environment is described without importing torch; GPUs as CUDA_VISIBLE_DEVICES shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from hub_loader import Torch, detect_environment
from hub_loader.environment import _torch
from hub_loader.nvml import Gpu, select_visible

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
        ("__version__ = '2.16.0a0+git1234'\n", None, Torch((2, 16), "2.16.0a0+git1234", None, None)),
    ],
)
def test_torch_when_described_from_its_files_then_runs_none_of_them(
    tmp_path: Path, version: str, symbol: bytes | None, torch: Torch
) -> None:
    spec = torch_folder(tmp_path, version + "raise SystemExit('was run')\n", symbol)
    assert _torch(spec) == torch


@pytest.mark.parametrize("version", ["", "__version__ = 'unknown'", "not python at all ("])
def test_torch_when_the_folder_is_no_torch_then_there_is_none(tmp_path: Path, version: str) -> None:
    assert _torch(torch_folder(tmp_path, version, None)) is None


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
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
    code = "import hub_loader; print(hub_loader.detect_environment().compute_capabilities)"
    for selection, seen in (("0,1", "((8, 0), (9, 0))"), ("GPU-b", "((9, 0),)"), ("", "()")):
        environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": selection}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{seen}\n"


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
