"""Weights repacked from checkpoints against their formats' own description, element by element."""

from __future__ import annotations

import dataclasses

import pytest
import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
NATURAL = tuple(range(8))

groups = pytest.mark.parametrize("group_size", [32, 64, 128, 256, 512, 1024, -1])


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    largest = expected.abs().max() if expected.numel() else 1.0
    error = ((actual.double() - expected).abs() / largest).max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


def pack(values, order=NATURAL):
    """[R, 8 C] below 16 to int32 [R, C]: in nibble i of each eight the column order[i]."""
    eights = values.long().reshape(len(values), -1, 8)
    packed = sum(eights[..., order[i]] << 4 * i for i in range(8))
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def random_weight(rows, columns, group_size, dtype=torch.float16):
    """Values [K, N], zero points [G, N] and scales [G, N]."""
    count = 1 if group_size == -1 else columns // group_size
    values, zeros = torch.randint(0, 16, (columns, rows)), torch.randint(1, 16, (count, rows))
    return values, zeros, (torch.rand(count, rows) + 0.01).to(dtype)


def meaning(values, zeros, scales, group_of):
    """float64 [N, K] of a weight whose input channel k is in group group_of[k]."""
    return ((values - zeros[group_of]).double() * scales[group_of].double()).T


def in_order(columns, group_size):
    return torch.arange(columns) // (columns if group_size == -1 else group_size)


@groups
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("m", [0, 1, 3, 17])
def test_awq_matmul_is_the_reference(kernel, m, dtype, group_size):
    scale_dtype = torch.float16 if dtype == torch.float32 else dtype
    values, zeros, scales = random_weight(24, 1024, group_size, scale_dtype)
    packed = kernel.from_awq(pack(values, AWQ_ORDER), pack(zeros, AWQ_ORDER), scales, group_size)
    weight = meaning(values, zeros, scales, in_order(1024, group_size))
    x = torch.randn(m, 1024).to(dtype)
    assert (packed.shape, packed.scales.dtype) == ((24, 1024), scale_dtype)
    assert_close(kernel.matmul(x, packed), x.double() @ weight.T)
    torch.testing.assert_close(kernel.dequantize(packed).double(), weight, rtol=1e-6, atol=0)


@groups
@pytest.mark.parametrize("zero_offset", [0, 1])
@pytest.mark.parametrize("m", [1, 17])
def test_gptq_matmul_is_the_reference(kernel, m, zero_offset, group_size):
    values, zeros, scales = random_weight(40, 1024, group_size)
    g_idx = in_order(1024, group_size).to(torch.int32)
    weight = meaning(values, zeros, scales, g_idx)
    x = torch.randn(m, 1024)
    for given in (None, g_idx):
        packed = kernel.from_gptq(
            pack(values.T).T, pack(zeros - zero_offset), scales, given, group_size, zero_offset
        )
        assert packed.permutation is None
        assert_close(kernel.matmul(x, packed), x.double() @ weight.T)
        torch.testing.assert_close(kernel.dequantize(packed).double(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("m", [0, 1, 3, 17, 70])
def test_gptq_matmul_of_groups_in_any_order_is_the_reference(cpu_kernel, m, dtype, group_size):
    check_act_order(cpu_kernel, (m, 384), group_size, dtype)


@pytest.mark.parametrize("shape", [(384,), (1, 384), (2, 3, 384)])
def test_gptq_matmul_of_groups_in_any_order_and_any_shape_is_the_reference(kernel, shape):
    check_act_order(kernel, shape, 64, torch.float32)


def check_act_order(kernel, shape, group_size, dtype):
    columns = shape[-1]
    values, zeros, scales = random_weight(16, columns, group_size)
    g_idx = in_order(columns, group_size)[torch.randperm(columns)].to(torch.int32)
    packed = kernel.from_gptq(pack(values.T).T, pack(zeros - 1), scales, g_idx, group_size)
    weight = meaning(values, zeros, scales, g_idx)
    x, bias = torch.randn(shape).to(dtype), torch.randn(16).to(dtype)
    assert_close(kernel.matmul(x, packed, bias), x.double() @ weight.T + bias.double())
    torch.testing.assert_close(kernel.dequantize(packed).double(), weight, rtol=1e-6, atol=0)


def test_gptq_of_an_odd_number_of_outputs_without_zero_points_is_the_reference(kernel):
    values, _, scales = random_weight(13, 128, 32)
    packed = kernel.from_gptq(pack(values.T).T, None, scales, group_size=32)
    weight = meaning(values, torch.full((4, 13), 8), scales, in_order(128, 32))
    x = torch.randn(3, 128)
    assert_close(kernel.matmul(x, packed), x.double() @ weight.T)


def test_awq_without_zero_points_and_of_odd_length_is_the_reference(kernel):
    values, _, scales = random_weight(8, 769, -1)
    packed = kernel.from_awq(pack(values, AWQ_ORDER), None, scales, -1)
    weight = meaning(values, torch.full((1, 8), 8), scales, in_order(769, -1))
    x = torch.randn(3, 769)
    assert_close(kernel.matmul(x, packed), x.double() @ weight.T)


def test_a_weight_whose_zero_points_are_all_8_needs_none(kernel):
    values, _, scales = random_weight(16, 128, 32)
    sevens = pack(torch.full((4, 16), 7))
    assert kernel.from_gptq(pack(values.T).T, sevens, scales, group_size=32).zeros is None
    assert kernel.from_gptq(pack(values.T).T, sevens, scales, group_size=32, zero_offset=0).zeros is not None


def pack_rows_of_32(values):
    """[K, N] below 16 to uint8 [N, K / 2]: 32 bytes for 32 outputs and two inputs, the 17th output above the 1st."""
    columns, rows = values.shape
    packed = torch.zeros(rows // 32, columns // 2, 32, dtype=torch.uint8)
    for block in range(rows // 32):
        for pair in range(columns // 2):
            for i in range(32):
                row, k = 32 * block + i // 2, 2 * pair + i % 2
                packed[block, pair, i] = values[k, row] + 16 * values[k, row + 16]
    return packed.view(rows, columns // 2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("m,blocksize", [(0, 32), (1, 32), (3, 64), (17, 128)])
def test_gemm_int4_forward_is_the_reference(kernel, m, blocksize, dtype):
    values, zeros, scales = random_weight(64, 128, blocksize, torch.bfloat16)
    weight = meaning(values, zeros, scales, in_order(128, blocksize))
    x = torch.randn(m, 128).to(dtype)
    actual = kernel.gemm_int4_forward(x, pack_rows_of_32(values), zeros.to(torch.uint8), scales, blocksize)
    assert actual.dtype == dtype
    assert_close(actual, x.double() @ weight.T)


def test_gemm_int4_forward_after_a_write_into_the_weight_has_its_new_values(kernel):
    values, zeros, scales = random_weight(32, 64, 64)
    weight, zeros = pack_rows_of_32(values), zeros.to(torch.uint8)
    x = torch.randn(2, 64)
    kernel.gemm_int4_forward(x, weight, zeros, scales, 64)
    other = torch.randint(0, 16, (64, 32))
    weight.data.copy_(pack_rows_of_32(other))
    expected = x.double() @ meaning(other, zeros.long(), scales, in_order(64, 64)).T
    assert_close(kernel.gemm_int4_forward(x, weight, zeros, scales, 64), expected)


def ints(*shape):
    return torch.zeros(shape, dtype=torch.int32)


def halves(*shape):
    return torch.ones(shape, dtype=torch.float16)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((ints(64, 2), ints(2, 2), halves(2, 16), 48), "group_size must be .* K=64 or -1, got 48"),
        ((ints(64, 2), ints(1, 2), halves(1, 16), 128), "K=64 is not divisible by group_size=128"),
        ((ints(64, 2), ints(1, 2), halves(1, 16), 0), "group_size must be .*, got 0"),
        ((ints(64, 2), ints(2, 3), halves(2, 16), 32), r"qzeros must be of shape \(2, 2\), got \(2, 3\)"),
        ((ints(64, 2), ints(2, 2), halves(16, 2), 32), r"scales must be of shape \(2, 16\), got \(16, 2\)"),
        ((ints(64, 2), ints(2, 2), ints(2, 16), 32), "scales must be float32, .* got torch.int32"),
        ((ints(64, 2).long(), ints(2, 2), halves(2, 16), 32), "qweight must be torch.int32, got torch.int64"),
        ((ints(64, 2), ints(2, 2).long(), halves(2, 16), 32), "qzeros must be torch.int32, got torch.int64"),
        ((ints(64), ints(2, 2), halves(2, 16), 32), r"qweight must have 2 dimensions .* \(64,\)"),
        ((ints(0, 2), None, halves(0, 16), 32), r"qweight must have 2 dimensions of at least 1"),
    ],
)
def test_from_awq_of_a_bad_argument_raises_with_its_name(kernel, arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel.from_awq(*(a.to(torch.get_default_device()) if torch.is_tensor(a) else a for a in arguments))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"bits": 8}, "bits must be 4, got 8"),
        ({"zero_offset": 2}, r"zero_offset must be 1 \(gptq\) or 0 \(gptq_v2\), got 2"),
        ({"g_idx": torch.arange(64) // 16}, "g_idx must give each of 2 groups 32 columns"),
        ({"g_idx": torch.zeros(64, dtype=torch.int32)}, "g_idx must give each of 2 groups 32 columns"),
        ({"g_idx": -(torch.arange(64) // 32)}, "g_idx must give each of 2 groups 32 columns"),
        ({"g_idx": torch.arange(32) // 32}, r"g_idx must be of shape \(64,\), got \(32,\)"),
        ({"g_idx": torch.zeros(64)}, "g_idx must be int32 or int64, got torch.float32"),
        ({"qweight": ints(8, 13), "scales": halves(2, 13)}, "N=13 columns, which is not divisible by the 8"),
        ({"qweight": ints(8, 24)}, r"scales must be of shape \(2, 24\), got \(2, 16\)"),
    ],
)
def test_from_gptq_of_a_bad_argument_raises_with_its_name(kernel, options, message):
    given = {
        "qweight": ints(8, 16),
        "qzeros": ints(2, 2),
        "scales": halves(2, 16),
        "group_size": 32,
    } | options
    device = torch.get_default_device()
    given = {name: value.to(device) if torch.is_tensor(value) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        kernel.from_gptq(**given)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"weight": torch.zeros(33, 32, dtype=torch.uint8)}, "a multiple of 32 rows, got 33"),
        ({"weight": ints(32, 32)}, "weight must be torch.uint8, got torch.int32"),
        ({"zeros": torch.full((2, 32), 16, dtype=torch.uint8)}, "zeros must be 0 to 15, got 16"),
        (
            {"zeros": torch.zeros(1, 32, dtype=torch.uint8)},
            r"zeros must be of shape \(2, 32\), got \(1, 32\)",
        ),
        ({"blocksize": 128}, "K=64 is not divisible by group_size=128"),
    ],
)
def test_gemm_int4_forward_of_a_bad_argument_raises_with_its_name(kernel, options, message):
    given = {
        "input": torch.randn(3, 64),
        "weight": torch.zeros(32, 32, dtype=torch.uint8),
        "zeros": torch.zeros(2, 32, dtype=torch.uint8),
        "absmax": halves(2, 32),
        "blocksize": 32,
    } | options
    device = torch.get_default_device()
    given = {name: value.to(device) if torch.is_tensor(value) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        kernel.gemm_int4_forward(**given)


def test_matmul_with_a_permutation_that_is_none_raises(kernel):
    values, zeros, scales = random_weight(16, 128, 32)
    packed = kernel.from_gptq(pack(values.T).T, pack(zeros - 1), scales, group_size=32)
    for permutation in (torch.arange(127), torch.arange(128).float()):
        with pytest.raises((RuntimeError, ValueError)):
            kernel.matmul(torch.randn(2, 128), dataclasses.replace(packed, permutation=permutation))


def test_matmul_with_a_permutation_under_torch_compile_is_matmul(cpu_kernel):
    values, zeros, scales = random_weight(16, 128, 32)
    g_idx = in_order(128, 32)[torch.randperm(128)]
    packed = cpu_kernel.from_gptq(pack(values.T).T, pack(zeros - 1), scales, g_idx, 32)
    x = torch.randn(3, 128)
    compiled = torch.compile(lambda x: cpu_kernel.matmul(x, packed) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), cpu_kernel.matmul(x, packed) + 1)
