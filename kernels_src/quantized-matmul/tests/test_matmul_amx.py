"""Integer products by AMX-INT8 and AVX-512 VNNI, whose instructions the tests' emulator runs, against the CPU build.

The build takes what this processor has: AVX2, or the instructions themselves. Bits are equal, and errors relative to
the largest absolute value of the expected tensor are those of any product.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import platform
from pathlib import Path

import matmul_reference as reference
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1" or platform.machine() != "x86_64":
    pytest.skip("instructions of x86_64 only", allow_module_level=True)

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# (format, K, group size): of one step and of several, a last step and a last 64 channels that are not whole.
WEIGHTS = [
    *(("int8", k, None) for k in (1, 63, 65, 300, 513)),
    *(("int4", k, k) for k in (1, 31, 100, 323)),
    *(
        ("int4", k, group)
        for k, group in ((32, 32), (288, 32), (192, 64), (320, 64), (128, 128), (384, 128), (512, 256))
    ),
]
ROWS = (1, 7, 8, 16, 17, 63, 70)

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
weights = pytest.mark.parametrize("format,k,group_size", WEIGHTS)


@pytest.fixture(scope="module")
def emulated(request, builds):
    return builds(request.path.parent.parent, "cpu-amx")


@pytest.fixture(scope="module")
def products(emulated):
    """Counts the products of a call: (by tiles, by vectors)."""
    (path,) = Path(emulated.__file__).parent.glob("*.so")
    library = ctypes.CDLL(str(path))
    counters = library.emulated_tile_products, library.emulated_vector_products
    for counter in counters:
        counter.restype = ctypes.c_int64

    def count(call):
        before = [counter() for counter in counters]
        call()
        return tuple(counter() - start for counter, start in zip(counters, before, strict=True))

    return count


def packed_weight(kernel, n, format, k, group_size, dtype=torch.float32, symmetric=True):
    weight = torch.randn(n, k).to(dtype)
    if format == "int8":
        return kernel.quantize(weight, format)
    if group_size not in (256, 512):
        return kernel.quantize(weight, format, group_size, symmetric=symmetric)
    packed = kernel.quantize(weight, format, 128, symmetric=symmetric)
    few = [
        None if t is None else t[:, :: group_size // 128].contiguous() for t in (packed.scales, packed.zeros)
    ]
    return dataclasses.replace(packed, group_size=group_size, scales=few[0], zeros=few[1])


def bits(tensor):
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@weights
@dtypes
def test_products_have_the_bits_of_the_build_and_are_the_reference(
    emulated, cpu_kernel, dtype, format, k, group_size
):
    for n, symmetric in ((8, True), (21, False), (40, True)):
        packed = packed_weight(cpu_kernel, n, format, k, group_size, dtype, symmetric)
        values, bias = cpu_kernel.dequantize(packed).double(), torch.randn(n).to(dtype)
        rows = torch.randn(max(ROWS), k + 3).to(dtype)[:, :k]
        for m in ROWS:
            for coarse in (False, True) if format == "int4" or dtype == torch.float32 else (False,):
                actual = emulated.matmul(rows[:m], packed, bias, int8_activations=coarse)
                expected = cpu_kernel.matmul(rows[:m], packed, bias, int8_activations=coarse)
                assert torch.equal(bits(actual), bits(expected)), (n, m, coarse)
                if not coarse:
                    exact = reference.matmul(rows[:m], values, bias)
                    assert (actual.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()


@dtypes
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k,group_size", [(64, 32), (192, 64), (192, 192), (384, 128), (512, 256)])
def test_products_with_weights_in_panels_have_the_bits_of_those_in_rows(
    emulated, cpu_kernel, monkeypatch, k, group_size, symmetric, dtype
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for n, scale_dtype in ((1, torch.float32), (9, torch.bfloat16), (52, torch.float16)):
        packed = packed_weight(emulated, n, "int4", k, group_size, scale_dtype, symmetric)
        panels = emulated.prepack(packed)
        assert panels.panels
        for m in (3, 16, 35):
            x = torch.randn(m, k).to(dtype)
            for coarse in (False, True):
                expected = cpu_kernel.matmul(x, packed, int8_activations=coarse)
                actual = emulated.matmul(x, panels, int8_activations=coarse)
                assert torch.equal(bits(actual), bits(expected)), (n, m, coarse)


@pytest.mark.parametrize(
    "format,dtype,rows",
    [("int8", torch.float32, 8), ("int8", torch.float16, 16), ("int4", torch.float32, 16)],
)
def test_tiles_multiply_from_sixteen_rows_on_and_vectors_fewer(emulated, products, format, dtype, rows):
    packed = emulated.quantize(torch.randn(40, 128), format)
    for m, by_tiles in ((rows - 1, False), (rows, True), (rows + 1, True)):
        x = torch.randn(m, 128).to(dtype)
        tiles, vectors = products(lambda x=x: emulated.matmul(x, packed))
        assert (tiles > 0, vectors > 0) == (by_tiles, not by_tiles)


@dtypes
@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("m", [5, 35])
def test_row_that_is_not_finite_is_nan_and_the_others_keep_their_bits(emulated, m, format, dtype):
    packed = emulated.quantize(torch.randn(21, 256), format)
    x = torch.randn(m, 256).to(dtype)
    expected = emulated.matmul(x, packed)
    x[1, 130], x[-1, 0] = torch.nan, -torch.inf
    actual = emulated.matmul(x, packed)
    assert actual[[1, -1]].isnan().all()
    others = [row for row in range(m) if row not in (1, m - 1)]
    assert torch.equal(bits(actual[others]), bits(expected[others]))


@dtypes
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_rows_of_any_size_have_the_bits_of_the_build(emulated, cpu_kernel, format, dtype):
    """A digit's bytes at both ends of their range, and of what is too small to have any."""
    packed = cpu_kernel.quantize(torch.randn(17, 256), format)
    packed.weight[0] = 127 if format == "int8" else 255
    packed.weight[1] = -127 if format == "int8" else 0
    x = torch.randn(34, 256).sign() * torch.tensor([0.0, 1e-42, 1e-4, 1.0, 6e4]).repeat(7)[:34, None]
    x = x.to(dtype)
    for rows in (x, x.abs(), -x.abs()):
        assert torch.equal(bits(emulated.matmul(rows, packed)), bits(cpu_kernel.matmul(rows, packed)))


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_any_number_of_threads_gives_the_same_bits(emulated, cpu_kernel, format):
    packed, x = cpu_kernel.quantize(torch.randn(333, 256), format), torch.randn(37, 256)
    expected = cpu_kernel.matmul(x, packed)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(bits(emulated.matmul(x, packed)), bits(expected))
    finally:
        torch.set_num_threads(before)
