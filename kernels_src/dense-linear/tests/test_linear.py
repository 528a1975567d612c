"""The dense product against float64. Errors are relative to the largest absolute value of the expected tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
own_blocks = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX2", reason="here torch multiplies many rows"
)


def reference(x, weight, bias=None):
    exact = x.double() @ weight.double().T
    return exact if bias is None else exact + bias.double()


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    largest = expected.abs().max().clamp_min(1e-30)
    error = ((actual.double() - expected).abs() / largest).max().item()
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


@dtypes
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 31, 63, 64, 100])
def test_linear_with_any_number_of_rows_is_the_reference(kernel, rows, dtype):
    x, weight = torch.randn(rows, 256).to(dtype), torch.randn(50, 256).to(dtype)
    bias = torch.randn(50).to(dtype)
    assert_close(kernel.linear(x, weight, bias), reference(x, weight, bias))


@dtypes
@pytest.mark.parametrize("rows", [64, 65, 66, 97, 768, 769, 1540])
@pytest.mark.parametrize(("outputs", "columns"), [(1, 9), (15, 256), (17, 257), (130, 520), (300, 1)])
def test_linear_of_many_rows_is_the_reference(kernel, rows, outputs, columns, dtype):
    """On both sides of what goes into a stripe of x, a panel of weights, and a pass over the rows."""
    x, weight = torch.randn(rows, columns).to(dtype), torch.randn(outputs, columns).to(dtype)
    bias = torch.randn(outputs).to(dtype)
    assert_close(kernel.linear(x, weight, bias), reference(x, weight, bias))


@dtypes
@own_blocks
def test_linear_of_many_rows_is_the_same_whatever_the_number_of_threads(kernel, dtype):
    x, weight = torch.randn(200, 700).to(dtype), torch.randn(333, 700).to(dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(kernel.linear(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@dtypes
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX2", reason="torch multiplies many rows here"
)
def test_linear_of_a_row_is_the_same_among_any_many_others(cpu_kernel, dtype):
    x, weight = torch.randn(1600, 300).to(dtype), torch.randn(40, 300).to(dtype)
    together = cpu_kernel.linear(x, weight)
    for begin, end in ((0, 64), (5, 90), (700, 1600)):
        assert torch.equal(cpu_kernel.linear(x[begin:end], weight), together[begin:end])


@dtypes
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 100, 769, 1024, 1025, 3072])
@pytest.mark.parametrize("outputs", [1, 2, 3, 24, 25])
def test_linear_of_any_width_is_the_reference(kernel, outputs, columns, dtype):
    x, weight = torch.randn(5, columns).to(dtype), torch.randn(outputs, columns).to(dtype)
    assert_close(kernel.linear(x, weight), reference(x, weight))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 90),
    n=st.integers(1, 90),
    k=st.integers(1, 300),
    dtype=st.sampled_from(list(TOLERANCE)),
    pad=st.integers(0, 9),
    bias=st.booleans(),
)
def test_linear_of_rows_with_a_stride_is_the_reference(cpu_kernel, m, n, k, dtype, pad, bias):
    x, weight = torch.randn(m, k + pad).to(dtype)[:, :k], torch.randn(n, k + pad).to(dtype)[:, :k]
    added = torch.randn(n).to(dtype) if bias else None
    assert_close(cpu_kernel.linear(x, weight, added), reference(x, weight, added))


@dtypes
def test_linear_of_a_row_is_the_same_alone_and_among_others(kernel, dtype):
    x, weight = torch.randn(63, 1100).to(dtype), torch.randn(77, 1100).to(dtype)
    together = kernel.linear(x, weight)
    for rows in (1, 2, 3, 6, 63):
        for begin in range(0, 63, rows):
            alone = kernel.linear(x[begin : begin + rows], weight)
            assert torch.equal(alone, together[begin : begin + rows])


def test_linear_with_many_narrow_rows_and_many_outputs_is_the_reference(cpu_kernel):
    x, weight = torch.randn(70, 64).bfloat16(), torch.randn(4500, 64).bfloat16()
    bias = torch.randn(4500).bfloat16()
    assert_close(cpu_kernel.linear(x, weight, bias), reference(x, weight, bias))


def test_linear_of_leading_dimensions_keeps_them_and_writes_to_out(kernel):
    x, weight = torch.randn(2, 3, 40), torch.randn(6, 40)
    out = torch.empty(2, 3, 6)
    assert kernel.linear(x, weight, out=out) is out
    assert_close(out, reference(x, weight))
    assert kernel.linear(torch.randn(0, 40), weight).shape == (0, 6)
    assert kernel.linear(x, torch.empty(0, 40)).shape == (2, 3, 0)


@dtypes
@pytest.mark.parametrize("rows", [3, 70, 1600])
def test_linear_into_its_own_input_is_the_reference(kernel, rows, dtype):
    x, weight = torch.randn(rows, 100).to(dtype), torch.randn(100, 100).to(dtype)
    expected = reference(x, weight)
    assert_close(kernel.linear(x, weight, out=x), expected)


@pytest.mark.parametrize("rows", [2, 900])
def test_linear_into_rows_that_lie_one_further_is_the_reference(cpu_kernel, rows):
    """A row's output is where the next row's input was."""
    memory = torch.randn(rows + 1, 32)
    x, weight = memory[:rows], torch.randn(32, 32)
    expected = reference(x, weight)
    assert_close(cpu_kernel.linear(x, weight, out=memory[1:]), expected)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "out", "words"),
    [
        ((3, 5), (4, 6), None, None, r"weight \[N, K\], got \(3, 5\) and \(4, 6\)"),
        ((3, 5), (5,), None, None, r"weight \[N, K\]"),
        ((3, 5), (4, 5), (3,), None, r"bias must be .* of shape \[4\]"),
        ((3, 5), (4, 5), None, (3, 5), r"out must be contiguous and of shape \(3, 4\)"),
    ],
    ids=["width", "vector", "bias", "out"],
)
def test_linear_of_shapes_that_do_not_fit_is_refused(kernel, x, weight, bias, out, words):
    made = [None if shape is None else torch.ones(shape) for shape in (bias, out)]
    with pytest.raises((ValueError, RuntimeError), match=words):
        kernel.linear(torch.ones(x), torch.ones(weight), *made)


def test_linear_of_mixed_or_unknown_dtypes_is_refused(kernel):
    with pytest.raises(RuntimeError, match="weight must be Float"):
        kernel.linear(torch.ones(1, 8), torch.ones(2, 8).half())
    with pytest.raises(RuntimeError, match="x must be float32, float16 or bfloat16"):
        kernel.linear(torch.ones(1, 8).double(), torch.ones(2, 8).double())
    with pytest.raises(RuntimeError, match="contiguous in its last dimension"):
        kernel.linear(torch.ones(1, 8), torch.ones(8, 2).T)


@dtypes
@pytest.mark.parametrize("rows", [3, 70])
def test_linear_is_traced_by_its_fake(cpu_kernel, rows, dtype):
    traced = torch.compile(lambda x, w: cpu_kernel.linear(x, w) + 1, backend="eager", fullgraph=True)
    x, weight = torch.randn(rows, 20).to(dtype), torch.randn(4, 20).to(dtype)
    assert_close(traced(x, weight), reference(x, weight) + 1)


def test_operator_keeps_the_promises_of_its_schema(cpu_kernel):
    """Mutation is declared, the fake agrees, aliasing is none: what torch.compile relies on."""
    op = cpu_kernel._ops.ops.linear.default
    for bias in (None, torch.randn(6)):
        torch.library.opcheck(op, (torch.empty(3, 6), torch.randn(3, 16), torch.randn(6, 16), bias))
