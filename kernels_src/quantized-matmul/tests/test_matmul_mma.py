"""Products of half-precision x on tensor cores, against float64.

The shapes are those that the CUDA build gives to tensor cores; what it does not is in test_matmul.py. Errors are
relative to the largest absolute value of the expected tensor.
"""

from __future__ import annotations

import dataclasses

import matmul_reference as reference
import pytest
import torch

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
FORMATS = [
    ("int8", {}),
    ("fp8", {}),
    ("fp8", {"group_size": 128}),
    ("int4", {"group_size": 32}),
    ("int4", {"group_size": 64, "symmetric": False}),
    ("int4", {"group_size": 128}),
    ("int4", {"group_size": 128, "symmetric": False}),
]

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
formats = pytest.mark.parametrize("format,options", FORMATS, ids=lambda value: str(value))


def assert_close(actual, expected):
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


def exact(x, packed, kernel, bias=None):
    """Of the weights that `dequantize` gives, which its own tests hold to the definition."""
    return reference.matmul(x, kernel.dequantize(packed).double(), bias)


@formats
@dtypes
@pytest.mark.parametrize("m,n", [(1, 64), (7, 3), (16, 65), (17, 40), (33, 129), (65, 9)])
def test_matmul_of_each_shape_of_tile_is_the_reference(kernel, m, n, dtype, format, options):
    packed = kernel.quantize(torch.randn(n, 384).to(dtype), format, **options)
    x, bias = torch.randn(m, 384).to(dtype), torch.randn(n).to(dtype)
    assert_close(kernel.matmul(x, packed, bias), exact(x, packed, kernel, bias))


@dtypes
@pytest.mark.parametrize("m", [2, 18])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [32, 96, 160, 544])
def test_matmul_with_one_group_per_row_of_any_length_is_the_reference(kernel, k, symmetric, m, dtype):
    packed = kernel.quantize(torch.randn(7, k), "int4", k, symmetric)
    x = torch.randn(m, k).to(dtype)
    assert_close(kernel.matmul(x, packed), exact(x, packed, kernel))


@dtypes
@pytest.mark.parametrize("m", [2, 18])
@pytest.mark.parametrize("k", [16, 48, 112, 272])
def test_int8_matmul_whose_rows_end_within_a_stage_is_the_reference(kernel, k, m, dtype):
    packed = kernel.quantize(torch.randn(7, k), "int8")
    x = torch.randn(m, k).to(dtype)
    assert_close(kernel.matmul(x, packed), exact(x, packed, kernel))


@dtypes
@pytest.mark.parametrize("group_size", [256, 512])
def test_matmul_with_groups_longer_than_quantize_makes_is_the_reference(kernel, group_size, dtype):
    packed = kernel.quantize(torch.randn(9, 1024), "int4", 128)
    packed = dataclasses.replace(
        packed, group_size=group_size, scales=packed.scales[:, :: group_size // 128].contiguous()
    )
    x = torch.randn(3, 1024).to(dtype)
    assert_close(kernel.matmul(x, packed), exact(x, packed, kernel))


@dtypes
def test_every_4_bit_value_with_every_zero_point_is_exact(kernel, dtype):
    values = torch.arange(16, dtype=torch.uint8)
    packed = kernel.quantize(torch.randn(17, 512), "int4", 32, symmetric=False)
    packed = dataclasses.replace(
        packed,
        weight=(values | values.flip(0) << 4).repeat(17, 16),
        zeros=torch.arange(17, dtype=torch.uint8)[:, None].expand(17, 16).contiguous(),
        scales=torch.ones(17, 16),
    )
    x = torch.zeros(32, 512).to(dtype)
    for k in range(32):
        x[k, k::32] = 1 / 16
    for rows in (x[:16], x[16:], x):
        assert torch.equal(kernel.matmul(rows, packed).double(), exact(rows, packed, kernel))


@dtypes
def test_every_8_bit_value_is_exact(kernel, dtype):
    packed = kernel.quantize(torch.randn(256, 32), "int8")
    values = torch.arange(-128, 128).to(torch.int8)[:, None].expand(256, 32).contiguous()
    packed = dataclasses.replace(packed, weight=values, scales=torch.ones(256))
    x = torch.eye(32)[:, [3, 0, 31, 17]].T.to(dtype).contiguous()
    assert torch.equal(kernel.matmul(x, packed).double(), exact(x, packed, kernel))


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16, torch.bfloat16])
@dtypes
def test_scales_of_any_dtype_are_not_rounded(kernel, scale_dtype, dtype):
    """A scale rounded to x's dtype first would be as wrong again as the result's own rounding."""
    packed = kernel.quantize(torch.randn(200, 128).to(scale_dtype), "int4", 64)
    x = torch.zeros(2, 128).to(dtype)
    x[0, 5] = x[1, 70] = 1
    expected = exact(x, packed, kernel)
    rounding = torch.finfo(dtype).eps / 2 + torch.finfo(torch.float32).eps
    assert ((kernel.matmul(x, packed).double() - expected).abs() <= rounding * expected.abs()).all()


@formats
@dtypes
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(kernel, dtype, format, options, monkeypatch):
    packed = kernel.quantize(torch.randn(70, 1664), format, **options)
    x = torch.randn(66, 1664).to(dtype)
    monkeypatch.delenv("CUDA_EMULATOR_ORDER", raising=False)
    together = kernel.matmul(x, packed)
    assert_close(together, exact(x, packed, kernel))
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    for rows in (slice(0, 1), slice(16, 32), slice(40, 66)):
        assert torch.equal(kernel.matmul(x[rows], packed), together[rows])


@pytest.mark.slow
def test_rows_enough_to_walk_the_slices_give_the_same_bits_as_split_ones(kernel):
    """In float32, which shows every bit of the sums: x is rounded, and goes to tensor cores all the same."""
    packed = kernel.quantize(torch.randn(2, 1536), "fp8")
    x = torch.randn(131 * 64 + 1, 1536)
    x[30:] = x[30]
    together = kernel.matmul(x, packed, fp8_activations=True)
    alone = kernel.matmul(x[:31], packed, fp8_activations=True)
    assert torch.equal(together[:31], alone)
    assert torch.equal(together[31:], alone[30:].expand_as(together[31:]))


@dtypes
@pytest.mark.parametrize("m", [5, 20])
def test_what_is_not_finite_stays_in_its_row(kernel, m, dtype):
    packed = kernel.quantize(torch.randn(9, 256), "int4", 64)
    x = torch.randn(m, 256).to(dtype)
    expected = kernel.matmul(x, packed)
    x[2, 7] = torch.nan
    actual = kernel.matmul(x, packed)
    assert actual[2].isnan().all()
    rest = [row for row in range(m) if row != 2]
    assert torch.equal(actual[rest], expected[rest])


@dtypes
def test_views_of_x_and_out_are_read_and_written_in_place(kernel, dtype):
    packed = kernel.quantize(torch.randn(24, 128), "int4", 64)
    wide = torch.randn(5, 400).to(dtype)
    for x in (wide[:, :128], wide[:, 128:256], wide[:, 3:131], wide[::2, 8:136]):
        assert_close(kernel.matmul(x, packed), exact(x, packed, kernel))


@pytest.mark.parametrize("dtype", [torch.float32, *TOLERANCE], ids=str)
@pytest.mark.parametrize("format,options", FORMATS[:3], ids=lambda value: str(value))
@pytest.mark.parametrize("m,n", [(1, 64), (16, 9), (17, 130), (66, 3)])
def test_rounded_x_that_8_bits_hold_is_exact(kernel, m, n, dtype, format, options):
    packed = kernel.quantize(torch.randn(n, 1168), format, **options)
    # Few enough digits for either type of 8 bits, and in every group its largest, so that scales are powers of two.
    x = torch.randint(-7, 8, (m, 1168)).float()
    x[:, ::16] = 127 if format == "int8" else 448
    x = (x * torch.exp2(torch.randint(-9, 0, (m, 1)).float())).to(dtype)
    bias = torch.randn(n).to(dtype)
    actual = kernel.matmul(x, packed, bias, int8_activations=True, fp8_activations=True)
    expected = exact(x, packed, kernel, bias)
    tolerance = TOLERANCE.get(dtype, 1e-5)
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("format,options", FORMATS[:3], ids=lambda value: str(value))
def test_a_rounded_row_gives_the_same_bits_alone_and_in_any_batch(kernel, format, options, monkeypatch):
    packed = kernel.quantize(torch.randn(70, 1664), format, **options)
    x = torch.randn(40, 1664)
    monkeypatch.delenv("CUDA_EMULATOR_ORDER", raising=False)
    together = kernel.matmul(x, packed, int8_activations=True, fp8_activations=True)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    for rows in (slice(0, 1), slice(16, 32), slice(20, 40)):
        alone = kernel.matmul(x[rows], packed, int8_activations=True, fp8_activations=True)
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("format,options", FORMATS[:3], ids=lambda value: str(value))
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_rounded_row_with_what_is_not_finite_is_not_a_number(kernel, wrong, format, options):
    packed = kernel.quantize(torch.randn(9, 256), format, **options)
    x = torch.randn(3, 256).bfloat16()
    expected = kernel.matmul(x, packed, int8_activations=True, fp8_activations=True)
    x[1, 40] = wrong
    actual = kernel.matmul(x, packed, int8_activations=True, fp8_activations=True)
    assert not actual[1].isfinite().any()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])
