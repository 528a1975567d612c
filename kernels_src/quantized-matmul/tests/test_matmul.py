"""Products with packed weights against float64.

Errors are relative to the largest absolute value of the expected tensor.
"""

from __future__ import annotations

import dataclasses

import matmul_reference as reference
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FORMATS = [
    ("int8", {}),
    ("int4", {"group_size": 32}),
    ("int4", {"group_size": 64}),
    ("int4", {"group_size": 128}),
    ("int4", {"group_size": 32, "symmetric": False}),
    ("int4", {"group_size": 128, "symmetric": False}),
]

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
formats = pytest.mark.parametrize("format,options", FORMATS, ids=lambda value: str(value))


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    largest = expected.abs().max().clamp_min(1e-30) if expected.numel() else 1.0
    error = ((actual.double() - expected).abs() / largest).max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


@formats
@dtypes
@pytest.mark.parametrize("m,n", [(1, 16), (1, 17), (2, 5), (3, 33), (9, 1), (17, 20)])
def test_matmul_of_each_shape_is_the_reference(kernel, m, n, dtype, format, options):
    packed = kernel.quantize(torch.randn(n, 256).to(dtype), format, **options)
    x, bias = torch.randn(m, 256).to(dtype), torch.randn(n).to(dtype)
    assert_close(kernel.matmul(x, packed, bias), reference.matmul(x, reference.weights(packed), bias))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 15, 16, 31, 100, 769, 1031])
def test_matmul_with_one_group_per_row_of_any_length_is_the_reference(kernel, k, symmetric):
    packed = kernel.quantize(torch.randn(7, k), "int4", group_size=k, symmetric=symmetric)
    x = torch.randn(3, k)
    assert_close(kernel.matmul(x, packed), reference.matmul(x, reference.weights(packed)))


@pytest.mark.parametrize("k", [1, 7, 8, 9, 100, 513, 769])
def test_int8_matmul_of_any_length_is_the_reference(kernel, k):
    packed = kernel.quantize(torch.randn(7, k), "int8")
    x = torch.randn(3, k)
    assert_close(kernel.matmul(x, packed), reference.matmul(x, reference.weights(packed)))


@formats
@dtypes
def test_matmul_over_a_long_row_is_the_reference(cpu_kernel, dtype, format, options):
    packed = cpu_kernel.quantize(torch.randn(40, 14336).to(dtype), format, **options)
    x = torch.randn(5, 14336).to(dtype)
    assert_close(cpu_kernel.matmul(x, packed), reference.matmul(x, cpu_kernel.dequantize(packed).double()))


@formats
@dtypes
@pytest.mark.parametrize("m,n,k", [(64, 16, 256), (70, 37, 384), (771, 5, 128)])
def test_matmul_of_many_rows_is_the_reference(cpu_kernel, m, n, k, dtype, format, options):
    packed = cpu_kernel.quantize(torch.randn(n, k).to(dtype), format, **options)
    x, bias = torch.randn(m, k + 3).to(dtype)[:, :k], torch.randn(n).to(dtype)
    assert_close(cpu_kernel.matmul(x, packed, bias), reference.matmul(x, reference.weights(packed), bias))


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("k", [1, 15, 31, 257, 769])
def test_matmul_of_many_rows_of_any_length_is_the_reference(cpu_kernel, k, format):
    packed = cpu_kernel.quantize(torch.randn(7, k), format, group_size=k)
    x = torch.randn(65, k)
    assert_close(cpu_kernel.matmul(x, packed), reference.matmul(x, reference.weights(packed)))


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("m,n", [(1, 37), (1, 1000), (5, 100), (70, 37), (70, 333)])
def test_matmul_with_any_number_of_threads_gives_the_same_bits(cpu_kernel, set_threads, m, n, format):
    packed, x = cpu_kernel.quantize(torch.randn(n, 384), format), torch.randn(m, 384)
    set_threads(1)
    alone = cpu_kernel.matmul(x, packed)
    assert_close(alone, x.double() @ cpu_kernel.dequantize(packed).double().T)
    for threads in (2, 3, 5, 8) * 5:
        set_threads(threads)
        assert torch.equal(cpu_kernel.matmul(x, packed), alone)


@formats
@dtypes
@pytest.mark.parametrize("m", [1, 4])
def test_matmul_of_rows_of_any_size_is_the_reference(cpu_kernel, m, dtype, format, options):
    packed = cpu_kernel.quantize(torch.randn(9, 256).to(dtype), format, **options)
    for size in (0.0, 1e-42, 1e-4, 6e4):
        x = (torch.randn(m, 256).clamp(-1, 1) * size).to(dtype)
        actual, exact = cpu_kernel.matmul(x.float(), packed), x.double() @ reference.weights(packed).T
        assert (actual - exact).abs().max() <= 1e-5 * exact.abs().max() + 1e-35
    x[-1, 40] = torch.inf
    assert cpu_kernel.matmul(x, packed)[-1].isnan().all()


def rounding(x, packed, weights):
    """How far products may be off where x is rounded to 8 bits by row, and with int4 by group of up to 128 channels."""
    group = min(packed.group_size, 128) if packed.format == "int4" else x.shape[1]
    steps = torch.split(x.double(), group, dim=1)
    slack = torch.cat([(step.abs().amax(1, keepdim=True) / 254).expand_as(step) for step in steps], dim=1)
    return slack @ weights.abs().T


@formats
@dtypes
@pytest.mark.parametrize("m", [1, 7, 70])
def test_matmul_with_int8_activations_is_within_their_rounding(kernel, m, dtype, format, options):
    packed = kernel.quantize(torch.randn(13, 384).to(dtype), format, **options)
    x, bias = torch.randn(m, 384).to(dtype), torch.randn(13).to(dtype)
    actual = kernel.matmul(x, packed, bias, int8_activations=True).double()
    weights = reference.weights(packed)
    expected = reference.matmul(x, weights, bias)
    off = (actual - expected).abs() - rounding(x, packed, weights)
    assert off.max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [1, 2, 31, 100, 769, 1031])
def test_matmul_with_int8_activations_and_one_group_per_row_is_within_their_rounding(kernel, k, symmetric):
    packed = kernel.quantize(torch.randn(7, k), "int4", group_size=k, symmetric=symmetric)
    x, weights = torch.randn(3, k), reference.weights(packed)
    actual, expected = kernel.matmul(x, packed, int8_activations=True), x.double() @ weights.T
    off = (actual - expected).abs() - rounding(x, packed, weights)
    assert off.max() <= 1e-5 * expected.abs().max()


@formats
@pytest.mark.parametrize("m", [1, 6])
def test_matmul_with_int8_activations_that_8_bits_hold_is_the_reference(kernel, m, format, options):
    packed = kernel.quantize(torch.randn(20, 512), format, **options)
    x = torch.randint(-127, 128, (m, 512)).float()
    x[:, ::32] = -127  # in each group
    x = x * torch.exp2(torch.randint(-9, 9, (m, 1)).float())
    assert_close(
        kernel.matmul(x, packed, int8_activations=True), reference.matmul(x, reference.weights(packed))
    )


@formats
def test_dequantize_is_the_reference(kernel, format, options):
    packed = kernel.quantize(torch.randn(5, 256), format, **options)
    torch.testing.assert_close(
        kernel.dequantize(packed).double(), reference.weights(packed), rtol=1e-6, atol=0
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_quantize_of_any_weight_is_within_half_a_step_of_it(cpu_kernel, data):
    format, options = data.draw(st.sampled_from(FORMATS))
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    generator = torch.Generator(torch.get_default_device()).manual_seed(data.draw(st.integers(0, 2**31)))
    spread, centre = (
        data.draw(st.sampled_from([0.0, 1e-3, 1.0, 50.0])),
        data.draw(st.sampled_from([0.0, 1.0, -3.0])),
    )
    weight = (torch.randn(4, 256, generator=generator) * spread + centre).to(dtype)
    packed = cpu_kernel.quantize(weight, format, **options)
    steps = packed.scales.float().reshape(4, -1).repeat_interleave(packed.group_size, dim=1)
    # The ends are as many steps away as there are levels, so a rounded scale moves them by that many
    # roundings; a rounded zero point moves them by half a step more.
    levels = 128 if format == "int8" else 16
    slack = 0.5 + levels * torch.finfo(packed.scales.dtype).eps + (0.5 if packed.zeros is not None else 0.0)
    assert ((cpu_kernel.dequantize(packed) - weight.float()).abs() <= slack * steps).all()


def test_quantize_of_whole_steps_is_exact(kernel):
    weight = torch.randint(-7, 8, (6, 64)).float()
    weight[:, 0] = weight[:, 32] = 7
    assert torch.equal(kernel.dequantize(kernel.quantize(weight, "int4", group_size=32)), weight)


def test_quantize_of_zeros_is_zeros(kernel):
    for format, options in FORMATS:
        packed = kernel.quantize(torch.zeros(2, 128), format, **options)
        assert torch.equal(kernel.dequantize(packed), torch.zeros(2, 128))


def test_matmul_of_more_dimensions_is_that_of_its_rows(kernel):
    packed = kernel.quantize(torch.randn(6, 64), "int8")
    x = torch.randn(2, 3, 64)
    assert torch.equal(kernel.matmul(x, packed), kernel.matmul(x.view(6, 64), packed).view(2, 3, 6))
    assert torch.equal(kernel.matmul(x[0, 0], packed), kernel.matmul(x[0, :1], packed)[0])


def test_matmul_of_a_transposed_or_sliced_x_is_the_reference(kernel):
    packed = kernel.quantize(torch.randn(6, 64), "int4", group_size=32)
    for x in (torch.randn(64, 3).T, torch.randn(3, 100)[:, 20:84], torch.randn(3, 2, 64)[:, 1]):
        assert_close(kernel.matmul(x, packed), reference.matmul(x, reference.weights(packed)))


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_matmul_of_no_rows_is_empty(kernel, shape):
    packed = kernel.quantize(torch.randn(6, 64), "int8")
    assert kernel.matmul(torch.empty(shape), packed).shape == (*shape[:-1], 6)


def test_matmul_with_no_output_channels_is_empty(kernel):
    assert kernel.matmul(torch.randn(3, 64), kernel.quantize(torch.empty(0, 64), "int8")).shape == (3, 0)


def test_matmul_into_out_writes_and_returns_it(kernel):
    packed = kernel.quantize(torch.randn(6, 64), "int8")
    x, out = torch.randn(3, 64), torch.full((3, 6), torch.nan)
    assert kernel.matmul(x, packed, out=out) is out
    assert torch.equal(out, kernel.matmul(x, packed))


@formats
def test_matmul_of_a_row_gives_the_same_bits_alone_and_in_any_batch(kernel, format, options, monkeypatch):
    packed = kernel.quantize(torch.randn(20, 1024), format, **options)
    x = torch.randn(7, 1024) * torch.tensor([1.0, 1e-3, 50.0, 1.0, 0.0, 2.0, 1e5])[:, None]
    for coarse in (False, True):
        monkeypatch.delenv("CUDA_EMULATOR_ORDER", raising=False)
        together = kernel.matmul(x, packed, int8_activations=coarse)
        monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
        for row in range(7):
            alone = kernel.matmul(x[row : row + 1], packed, int8_activations=coarse)
            assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((torch.randn(4, 100), "int4", 32), "K=100 is not divisible by group_size=32"),
        ((torch.randn(4, 96), "int4"), "K=96 is not divisible by group_size=128"),
        ((torch.randn(4, 96), "int4", 48), "group_size must be 32, 64, 128 or K=96, got 48"),
        ((torch.randn(4, 96), "int3"), '"int8", "int4" or "fp8", got "int3"'),
        ((torch.randn(4, 96), "int8", 128, False), "int8 is symmetric"),
        ((torch.randn(96), "int8"), r"got shape \(96,\)"),
        ((torch.randn(4, 0), "int8"), r"got shape \(4, 0\)"),
        ((torch.ones(4, 96).int(), "int8"), "got torch.int32"),
        ((torch.tensor([[1.0, torch.nan]]), "int8"), "not finite"),
        ((torch.tensor([[1.0, torch.inf]]), "int8"), "not finite"),
    ],
)
def test_quantize_of_a_bad_argument_raises_with_its_value(kernel, arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel.quantize(*arguments)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_matmul_of_a_bad_argument_raises_with_its_name(kernel, format):
    packed = kernel.quantize(torch.randn(6, 128), format)
    x = torch.randn(3, 128)
    for arguments, message in [
        ((torch.randn(3, 127), packed), r"x must be \[..., 128\]"),
        ((x, packed, None, torch.empty(3, 5)), r"of shape \(3, 6\), got \(3, 5\)"),
        ((x, packed, None, torch.empty(6, 3).T), "out must be contiguous"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernel.matmul(*arguments)
    for arguments, message in [
        ((x.double(), packed), "x must be float32, float16 or bfloat16, got Double"),
        ((x, packed, torch.randn(5)), "bias must have size 6 in dimension 0, got 5"),
        ((x, packed, torch.randn(6).half()), "bias must be Float, got Half"),
        ((x, packed, None, torch.empty(3, 6).half()), "out must be Float, got Half"),
        ((x, dataclasses.replace(packed, weight=packed.weight[:, 1:])), "weight must have size"),
        (
            (x, dataclasses.replace(packed, scales=packed.scales[1:])),
            "scales must have size 6 in dimension 0, got 5",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            kernel.matmul(*arguments)


def test_matmul_under_torch_compile_is_matmul(cpu_kernel):
    packed = cpu_kernel.quantize(torch.randn(6, 128), "int4")
    x = torch.randn(3, 128)
    compiled = torch.compile(lambda x: cpu_kernel.matmul(x, packed) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), cpu_kernel.matmul(x, packed) + 1)


def test_operators_keep_the_promises_of_their_schemas(cpu_kernel):
    """Mutation is declared, the fakes agree, aliasing is none: what torch.compile relies on."""
    namespace = cpu_kernel._ops.ops
    x, out, bias = torch.randn(3, 128), torch.empty(3, 6), torch.randn(6)
    int8 = cpu_kernel.quantize(torch.randn(6, 128), "int8")
    torch.library.opcheck(namespace.int8_matmul.default, (out, x, int8.weight, int8.scales, bias, False))
    for symmetric, coarse in ((True, False), (False, True)):
        int4 = cpu_kernel.quantize(torch.randn(6, 128), "int4", 64, symmetric)
        given = (out, x, int4.weight, int4.scales, int4.zeros, None, 64, coarse)
        torch.library.opcheck(namespace.int4_matmul.default, given)
