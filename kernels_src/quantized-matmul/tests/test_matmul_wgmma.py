"""Products of bytes by bytes with what compute capability 9.0 has of its own, against float64.

The emulator is told to be such a device. x is what bytes hold exactly, so that only sums are rounded; errors are
relative to the largest absolute value of the expected tensor.
"""

from __future__ import annotations

import os

import matmul_reference as reference
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the Triton variant has no such instructions", allow_module_level=True)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
FORMATS = [("int8", {}), ("fp8", {}), ("fp8", {"group_size": 128})]

formats = pytest.mark.parametrize("format,options", FORMATS, ids=["int8", "fp8", "fp8-by-block"])
orders = pytest.mark.parametrize("order", ["forward", "reverse"])


@pytest.fixture(scope="module", params=["cuda-emulated", *(["cuda"] if ON_GPU else [])])
def kernel(request, builds):
    with torch.device("cuda" if request.param == "cuda" else "cpu"):
        yield builds(request.path.parent.parent, request.param)


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setenv("CUDA_EMULATOR_CAPABILITY", "9.0")


def held_by_bytes(m, k, format):
    """Of each row, and each 128 of its columns, the largest is what a byte's largest stands for by a power of two."""
    if format == "int8":
        x = torch.randint(-127, 128, (m, k)).float()
        x[:, ::16] = 127
        x /= 128
    else:
        x = torch.randint(8, 16, (m, k)) * torch.exp2(torch.randint(-4, 1, (m, k)).float()) / 16
        x = x * (torch.randint(0, 2, (m, k)) * 2 - 1)
        x[:, ::16] = 1.75
    return x * torch.exp2(torch.randint(-6, 6, (m, 1)).float())


def multiply(kernel, x, packed, bias=None):
    coarse = {f"{packed.format}_activations": True}
    return kernel.matmul(x, packed, bias, **coarse)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    error = (actual.double().cpu() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


def exact(x, packed, bias=None):
    weights = reference.weights(packed)
    return reference.matmul(x.cpu(), weights, None if bias is None else bias.cpu())


@orders
@formats
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "m,n,k", [(1, 1, 16), (3, 130, 272), (64, 128, 128), (65, 129, 400), (130, 40, 1040)]
)
def test_matmul_of_each_shape_of_tile_is_the_reference(
    kernel, m, n, k, dtype, format, options, order, monkeypatch
):
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    packed = kernel.quantize(torch.randn(n, k).to(dtype), format, **options)
    x, bias = held_by_bytes(m, k, format).to(dtype), torch.randn(n).to(dtype)
    assert_close(multiply(kernel, x, packed, bias), exact(x, packed, bias))


@formats
def test_tiles_that_a_block_takes_in_turn_are_the_reference(kernel, format, options):
    """More of them than multiprocessors, in two bands of rows, the last of each narrower."""
    packed = kernel.quantize(torch.randn(300, 256), format, **options)
    x = held_by_bytes(17 * 128 + 5, 256, format)
    assert_close(multiply(kernel, x, packed), exact(x, packed))


@formats
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(kernel, format, options, monkeypatch):
    packed = kernel.quantize(torch.randn(70, 1664), format, **options)
    x = torch.randn(130, 1664)
    together = multiply(kernel, x, packed)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    for rows in (slice(0, 1), slice(16, 32), slice(30, 94), slice(60, 130)):
        assert torch.equal(multiply(kernel, x[rows], packed), together[rows])


@pytest.mark.slow
def test_rows_enough_to_walk_the_slices_give_the_same_bits_as_split_ones(kernel):
    packed = kernel.quantize(torch.randn(2, 1024), "fp8")
    x = torch.randn(131 * 128 + 1, 1024)
    x[30:] = x[30]
    together, alone = multiply(kernel, x, packed), multiply(kernel, x[:31], packed)
    assert torch.equal(together[:31], alone)
    assert torch.equal(together[31:], alone[30:].expand_as(together[31:]))


def test_whole_numbers_of_more_channels_than_31_bits_hold_are_summed_exactly(kernel):
    """The largest products of one sign: 140,000 of them are more than 2^31."""
    k = 140_000
    packed = kernel.quantize(torch.ones(3, k), "int8")
    x = torch.full((2, k), 127.0)
    assert_close(multiply(kernel, x, packed), torch.full((2, 3), 127.0 * k, dtype=torch.float64))


@formats
def test_what_is_not_finite_stays_in_its_row(kernel, format, options):
    packed = kernel.quantize(torch.randn(9, 256), format, **options)
    x = torch.randn(70, 256)
    expected = multiply(kernel, x, packed)
    x[2, 7], x[66, 200] = torch.nan, torch.inf
    actual = multiply(kernel, x, packed)
    assert actual[[2, 66]].isnan().all()
    others = [row for row in range(70) if row not in (2, 66)]
    assert torch.equal(actual[others], expected[others])


@formats
def test_other_devices_agree(kernel, format, options, monkeypatch):
    """Which add up in another order."""
    packed = kernel.quantize(torch.randn(70, 1664), format, **options)
    x = torch.randn(20, 1664)
    here = multiply(kernel, x, packed)
    monkeypatch.setenv("CUDA_EMULATOR_CAPABILITY", "12.0")
    assert_close(multiply(kernel, x, packed), here.double().cpu())
