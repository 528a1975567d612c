"""fp8 weights: e4m3 numbers with scales by channel or by block of 128 x 128.

Errors are relative to the largest absolute value of the expected tensor.
"""

from __future__ import annotations

import dataclasses

import matmul_reference as reference
import pytest
import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LARGEST = 448.0

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
scalings = pytest.mark.parametrize("group_size", [None, 128], ids=["by-channel", "by-block"])


def assert_close(actual, expected, slack=0.0):
    assert actual.shape == expected.shape
    error = (actual.double().cpu() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[actual.dtype] + slack, f"relative error {error:.2e}"


def exact(x, packed, bias=None):
    bias = None if bias is None else bias.cpu()
    return reference.matmul(x.cpu(), reference.weights(packed), bias)


@scalings
@dtypes
@pytest.mark.parametrize("m,n", [(1, 16), (1, 17), (3, 130), (5, 9), (9, 1), (17, 20)])
def test_matmul_of_each_shape_is_the_reference(kernel, m, n, dtype, group_size):
    packed = kernel.quantize(torch.randn(n, 272).to(dtype), "fp8", group_size)
    x, bias = torch.randn(m, 272).to(dtype), torch.randn(n).to(dtype)
    assert_close(kernel.matmul(x, packed, bias), exact(x, packed, bias))


@scalings
@dtypes
@pytest.mark.parametrize("k", [1, 7, 8, 9, 100, 128, 136, 513, 769])
def test_matmul_of_any_length_is_the_reference(kernel, k, dtype, group_size):
    packed = kernel.quantize(torch.randn(7, k), "fp8", group_size)
    x = torch.randn(3, k).to(dtype)
    assert_close(kernel.matmul(x, packed), exact(x, packed))


@scalings
@dtypes
@pytest.mark.parametrize("m,n,k", [(5, 40, 7168), (67, 130, 384), (771, 5, 129)])
def test_matmul_of_many_rows_or_columns_is_the_reference(cpu_kernel, m, n, k, dtype, group_size):
    packed = cpu_kernel.quantize(torch.randn(n, k).to(dtype), "fp8", group_size)
    x, bias = torch.randn(m, k + 3).to(dtype)[:, :k], torch.randn(n).to(dtype)
    assert_close(cpu_kernel.matmul(x, packed, bias), exact(x, packed, bias))


@dtypes
@pytest.mark.parametrize("k", [16, 13])
def test_every_number_is_exact(kernel, k, dtype):
    """Subnormal ones and both zeros too; not a number is none that ``quantize`` makes."""
    bits = torch.tensor([b for b in range(256) if b & 127 != 127], dtype=torch.uint8, device="cpu")
    weight = bits[:, None].expand(254, k).contiguous().view(torch.float8_e4m3fn)
    packed = kernel.quantize(torch.zeros(254, k), "fp8")
    packed = dataclasses.replace(packed, weight=weight.to(packed.weight.device))
    x = torch.zeros(k, k).to(dtype)
    x.fill_diagonal_(1)
    expected = torch.tensor([reference.e4m3(int(b)) for b in bits], device="cpu")
    actual = kernel.matmul(x, packed).double().cpu()
    assert torch.equal(actual, expected.to(dtype).double().expand(k, 254))


@scalings
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(kernel, group_size, monkeypatch):
    packed = kernel.quantize(torch.randn(20, 640), "fp8", group_size)
    x = torch.randn(7, 640) * torch.tensor([1.0, 1e-3, 50.0, 1.0, 0.0, 2.0, 1e5])[:, None]
    monkeypatch.delenv("CUDA_EMULATOR_ORDER", raising=False)
    together = kernel.matmul(x, packed)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    for row in range(7):
        assert torch.equal(kernel.matmul(x[row : row + 1], packed)[0], together[row])


def test_matmul_with_any_number_of_threads_gives_the_same_bits(cpu_kernel):
    packed, x = cpu_kernel.quantize(torch.randn(333, 384), "fp8"), torch.randn(70, 384)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(cpu_kernel.matmul(x, packed))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@scalings
@dtypes
def test_quantize_is_within_half_a_step_of_the_weight(kernel, dtype, group_size):
    weight = (torch.randn(140, 300) * torch.logspace(-3, 3, 140)[:, None]).to(dtype)
    packed = kernel.quantize(weight, "fp8", group_size)
    actual, expected = kernel.dequantize(packed), weight.float()
    scales = packed.scales
    if group_size:
        assert scales.shape == (2, 3)
        scales = scales.repeat_interleave(128, 0)[:140].repeat_interleave(128, 1)[:, :300]
    else:
        assert scales.shape == (140,)
        scales = scales[:, None]
    half_step = torch.maximum(expected.abs() / 16, scales * 2.0**-10) * (1 + 1e-5)
    assert ((actual - expected).abs() <= half_step).all()
    largest = packed.weight.float().abs().max(dim=1).values
    assert (largest == LARGEST).any() if group_size else (largest == LARGEST).all()


@scalings
def test_dequantize_is_the_reference(kernel, group_size):
    packed = kernel.quantize(torch.randn(130, 257), "fp8", group_size)
    actual = kernel.dequantize(packed).double().cpu()
    torch.testing.assert_close(actual, reference.weights(packed), rtol=1e-6, atol=0)


def test_quantize_of_zeros_is_zeros(kernel):
    for group_size in (None, 128):
        packed = kernel.quantize(torch.zeros(2, 200), "fp8", group_size)
        assert torch.equal(kernel.dequantize(packed), torch.zeros(2, 200))


@scalings
@dtypes
@pytest.mark.parametrize("m", [1, 6, 18])
def test_fp8_activations_that_e4m3_holds_are_exact(kernel, m, dtype, group_size):
    packed = kernel.quantize(torch.randn(140, 272), "fp8", group_size)
    # Numbers of three bits of mantissa below 1, and in every group a larger one that is 448 / 256: its scale is then a
    # power of two.
    x = torch.randint(8, 16, (m, 272)) * torch.exp2(torch.randint(-4, 1, (m, 272)).float()) / 16
    x[:, ::16] = 1.75
    x = (x * torch.exp2(torch.randint(-6, 6, (m, 1)).float())).to(dtype)
    assert_close(kernel.matmul(x, packed, fp8_activations=True), exact(x, packed))


@scalings
@dtypes
@pytest.mark.parametrize("m,k", [(1, 272), (18, 272), (3, 129)])
def test_fp8_activations_are_within_their_rounding(kernel, m, k, dtype, group_size):
    packed = kernel.quantize(torch.randn(40, k), "fp8", group_size)
    x = torch.randn(m, k).to(dtype)
    actual, expected = kernel.matmul(x, packed, fp8_activations=True), exact(x, packed)
    # Half a step of each value, and of the smallest ones where its row's largest is e4m3's.
    steps = x.cpu().double().abs() / 16 + x.cpu().double().abs().amax(1, keepdim=True) / LARGEST * 2.0**-10
    slack = steps @ reference.weights(packed).abs().T
    assert ((actual.double().cpu() - expected).abs() <= slack + TOLERANCE[dtype] * expected.abs().max()).all()


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_matmul_of_no_rows_is_empty(kernel, shape):
    for group_size in (None, 128):
        packed = kernel.quantize(torch.randn(6, 64), "fp8", group_size)
        assert kernel.matmul(torch.empty(shape), packed, fp8_activations=True).shape == (*shape[:-1], 6)


def test_quantize_of_a_bad_argument_raises_with_its_value(kernel):
    with pytest.raises(ValueError, match="group_size must be 128 or K=96 for fp8, got 64"):
        kernel.quantize(torch.randn(4, 96), "fp8", 64)
    with pytest.raises(ValueError, match="fp8 is symmetric"):
        kernel.quantize(torch.randn(4, 96), "fp8", symmetric=False)


def test_matmul_of_a_bad_argument_raises_with_its_name(kernel):
    packed = kernel.quantize(torch.randn(130, 256), "fp8", 128)
    x = torch.randn(3, 256)
    scales = packed.scales
    for change, message in [
        ({"weight": packed.weight.float()}, "weight must be Float8_e4m3fn, got Float"),
        ({"weight": packed.weight[:, 1:]}, "weight must have size 256 in dimension 1, got 255"),
        ({"scales": scales.half()}, "scales must be Float, got Half"),
        ({"scales": scales[:1]}, "scales must have size 2 in dimension 0, got 1"),
        ({"scales": scales[:, :1]}, "scales must have size 2 in dimension 1, got 1"),
        ({"scales": scales[:, 0]}, "scales must have size 130 in dimension 0, got 2"),
        ({"scales": scales[None]}, "scales must have 1 dimension, .* or 2, .*; got 3"),
        ({"scales": scales.T}, "scales must be contiguous"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            kernel.matmul(x, dataclasses.replace(packed, **change))


def test_operator_keeps_the_promises_of_its_schema(cpu_kernel):
    operator = cpu_kernel._ops.ops.fp8_matmul.default
    x, out, bias = torch.randn(3, 200), torch.empty(3, 6), torch.randn(6)
    # torch's own test of mutations multiplies what it compares, which it cannot do with float8.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for group_size, coarse in ((None, False), (128, True)):
        packed = cpu_kernel.quantize(torch.randn(6, 200), "fp8", group_size)
        given = (x, packed.weight, packed.scales, bias)
        torch.library.opcheck(operator, (out, *given, coarse), test_utils=checks)
        before = [tensor.clone() for tensor in given]
        operator(out, *given, coarse)
        assert all(torch.equal(a.float(), b.float()) for a, b in zip(given, before, strict=True))


def test_matmul_under_torch_compile_is_matmul(cpu_kernel):
    packed = cpu_kernel.quantize(torch.randn(6, 128), "fp8")
    x = torch.randn(3, 128)
    compiled = torch.compile(lambda x: cpu_kernel.matmul(x, packed) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), cpu_kernel.matmul(x, packed) + 1)
