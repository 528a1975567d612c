"""Kernels bound to torch's C++ interface and to tvm-ffi: built, audited, loaded; the Hub's own examples too."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_audit import GOOD

from build_matrix.audit import Promise, read_library, violations
from build_matrix.build_toml import read_build_file
from build_matrix.matrix import read_matrix
from build_matrix.plan import plan
from hub_loader.manifest import parse_index
from hub_loader.variant import parse_variant

KERNELS = Path(__file__).parent / "kernels"
MATRIX = read_matrix()
TVM_FFI = "tvm-ffi01-cpu-x86_64-linux"
EXACT = "torch213-cxx11-cpu-x86_64-linux"
EXAMPLES = os.environ.get("KHUB_HUB_EXAMPLES")  # a folder of kernels, such as examples/kernels of a checkout

LOAD_TVM_FFI = """
import sys, numpy
from hub_loader import get_local_kernel
kernel = get_local_kernel(sys.argv[1])
x = numpy.arange(5, dtype=numpy.float32)
assert (kernel.double_it(numpy.empty_like(x), x) == 2 * x).all()
try:
    kernel.double_it(numpy.empty(3, numpy.float32), x)
except ValueError as error:
    print(error)
print(*kernel.NAMES)
"""
LOAD_ATEN = """
import sys, torch
from hub_loader import get_local_kernel
kernel = get_local_kernel(sys.argv[1])
assert torch.equal(kernel.triple(torch.ones(4)), torch.full((4,), 3.0))
try:
    kernel.triple(torch.ones(2, 2))
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""

RELU = "assert torch.equal(kernel.relu(x), x.clamp(min=0))"
SILU = "torch.testing.assert_close(kernel.silu_and_mul(x), F.silu(x[:, :32]) * x[:, 32:])"


def build(kernel: Path, select: str, out: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hub_loader",
        "build",
        str(kernel),
        "--select",
        select,
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def load(code: str, package: Path, *path: Path) -> str:
    search = os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-B", "-c", code, str(package)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": search})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plan_of_a_tvm_ffi_kernel_names_the_series_and_refuses_other_backends() -> None:
    cells, refused = plan(read_build_file(KERNELS / "tiny-tvm"), MATRIX)
    assert TVM_FFI in map(str, cells)
    assert {(cell.torch_release, len(cell.packages)) for cell in cells} == {(None, 2)}
    assert [one.name for one in refused] == ["xpu"]


@pytest.mark.parametrize(
    ("variant", "symbol", "accepted"),
    [
        (EXACT, "_ZN2at4_ops9mul_Tensor4callERKNS_6TensorES4_", True),
        (EXACT, "_ZNK3c1010TensorImpl16throw_data_ptr_access_on_throwing_tensorEv", True),
        (EXACT, "_ZTIN5torch8autograd12AutogradMetaE", True),
        (EXACT, "_ZSt8to_charsPcS_d", False),
        (EXACT, "_ZN4mine3fooERKN2at6TensorE", False),
        (EXACT, "gettid", False),
        ("torch-stable-abi210-cpu-x86_64-linux", "_ZN2at4_ops9mul_Tensor4callERKNS_6TensorES4_", False),
        (TVM_FFI, "TVMFFIErrorSetRaised", True),
        (TVM_FFI, "aoti_torch_get_dim", False),
    ],
)
def test_audit_accepts_of_each_framework_its_own_symbols_alone(
    variant: str, symbol: str, accepted: bool
) -> None:
    exported = ("__tvm_ffi_f",) if variant == TVM_FFI else GOOD.exported
    library = replace(GOOD, needed=(), undefined=(symbol,), exported=exported)
    found = violations(library, Promise(parse_variant(variant), "_k_cpu_1", MATRIX.baseline, ()))
    assert found == (
        [] if accepted else [f"it needs the symbol {symbol}, which a user of {variant} may not have"]
    )


def test_audit_of_a_tvm_ffi_library_refuses_torch_and_other_exports() -> None:
    library = replace(GOOD, needed=("libtorch_cpu.so",), undefined=(), exported=("__tvm_ffi_f", "g"))
    found = violations(library, Promise(parse_variant(TVM_FFI), "_k_cpu_1", MATRIX.baseline, ()))
    assert [sentence.split(",")[0] for sentence in found] == [
        "it needs libtorch_cpu.so",
        "it exports __tvm_ffi_f",
    ]


@pytest.mark.heavy
def test_build_of_a_tvm_ffi_kernel_loads_on_the_oldest_and_newest_release(tmp_path: Path) -> None:
    build(KERNELS / "tiny-tvm", "*-cpu-*", tmp_path / "package")
    variant = parse_index((tmp_path / "package" / "index.json").read_bytes(), origin="").variants[TVM_FFI]
    library = read_library(tmp_path / "package" / "build" / TVM_FFI / f"{variant.id}.so")
    assert "libtvm_ffi.so" in library.needed
    assert library.exported == ("__tvm_ffi_double_it",)
    for release in (MATRIX.tvm_ffi.symbols, MATRIX.tvm_ffi.headers):
        target = tmp_path / release
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), release, "numpy"]
        subprocess.run(pip, check=True, capture_output=True)
        said = load(LOAD_TVM_FFI, tmp_path / "package", target)
        assert "out has 3 elements" in said
        assert f"{variant.id}.f {variant.id}::f" in said


@pytest.mark.heavy
def test_build_of_an_aten_kernel_with_a_module_of_its_own_loads_on_its_torch(tmp_path: Path) -> None:
    build(KERNELS / "tiny-aten", EXACT, tmp_path / "package")
    assert "triple: x has 2 dimensions" in load(LOAD_ATEN, tmp_path / "package")


@pytest.mark.heavy
@pytest.mark.skipif(EXAMPLES is None, reason="KHUB_HUB_EXAMPLES names no folder of kernels")
@pytest.mark.parametrize(
    ("name", "select", "check"),
    [
        ("relu", EXACT, RELU),
        (
            "extra-data",
            EXACT,
            f"{RELU} and kernel.EASTER_EGG == 42",
        ),
        (
            "relu-torch-stable-abi",
            "torch-stable-*-cpu-x86_64-*",
            RELU,
        ),
        (
            "relu-tvm-ffi",
            TVM_FFI,
            f"kernel.relu(x, out := torch.empty_like(x)); {RELU.replace('kernel.relu(x)', 'out')}",
        ),
        (
            "silu-and-mul",
            "torch-cpu",
            SILU,
        ),
        ("relu-triton", "torch-cuda", None),  # its clients load it on a machine with a GPU alone
    ],
)
def test_hubs_examples_build_unchanged_and_the_stock_client_loads_them(
    name: str, select: str, check: str | None, tmp_path: Path, stock_torch_python: Path
) -> None:
    build(Path(EXAMPLES or "") / name, select, tmp_path / "package")
    index = parse_index((tmp_path / "package" / "index.json").read_bytes(), origin="")
    assert index.name == name
    if check is None:
        return
    program = (
        "import sys, torch, pathlib\nimport torch.nn.functional as F\nfrom kernels import get_local_kernel\n"
        f"kernel, x = get_local_kernel(pathlib.Path(sys.argv[1])), torch.randn(3, 64)\n{check}"
    )
    command = [stock_torch_python, "-c", program, tmp_path / "package"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
