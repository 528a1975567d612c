"""Products with GGUF's blocks against float64, errors relative to the largest absolute value of the expected tensor."""

from __future__ import annotations

import dataclasses

import gguf_reference as reference
import pytest
import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
kinds = pytest.mark.parametrize("kind", reference.SIZES)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    largest = expected.abs().max() if expected.numel() else 1.0
    error = ((actual.double() - expected).abs() / largest).max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


def make(kernel, kind, rows, columns):
    """A packed weight and what it stands for."""
    data = reference.random_blocks(kind, rows, columns)
    return kernel.from_gguf(data, kind, (rows, columns)), reference.weights(data, kind)


@kinds
@dtypes
@pytest.mark.parametrize("m,n", [(0, 5), (1, 17), (2, 8), (3, 33), (4, 1), (17, 20)])
def test_gguf_matmul_of_each_shape_is_the_reference(kernel, m, n, dtype, kind):
    packed, weight = make(kernel, kind, n, 512)
    x, bias = (torch.randn(m, 512) / 16).to(dtype), torch.randn(n).to(dtype)
    assert_close(kernel.matmul(x, packed, bias), x.double() @ weight.T + bias.double())


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("m", [1, 3, 6])
@pytest.mark.parametrize("k", [32, 96, 256, 288, 736])
def test_gguf_matmul_of_any_length_is_the_reference(kernel, k, m, kind):
    packed, weight = make(kernel, kind, 7, k)
    x = torch.randn(m, k)
    assert_close(kernel.matmul(x, packed), x.double() @ weight.T)


@kinds
@dtypes
@pytest.mark.parametrize("m,n,k", [(70, 37, 768), (200, 3, 256), (771, 9, 512)])
def test_gguf_matmul_of_many_rows_is_the_reference(cpu_kernel, m, n, k, dtype, kind):
    packed, weight = make(cpu_kernel, kind, n, k)
    x, bias = torch.randn(m, k + 3).to(dtype)[:, :k], torch.randn(n).to(dtype)
    assert_close(cpu_kernel.matmul(x, packed, bias), x.double() @ weight.T + bias.double())


@kinds
def test_gguf_matmul_over_a_long_row_is_the_reference(cpu_kernel, kind):
    packed, weight = make(cpu_kernel, kind, 11, 14336)
    x = torch.randn(5, 14336)
    assert_close(cpu_kernel.matmul(x, packed), x.double() @ weight.T)


@kinds
def test_gguf_dequantize_is_the_reference(kernel, kind):
    packed, weight = make(kernel, kind, 5, 512)
    actual = kernel.dequantize(packed)
    assert actual.dtype == torch.float32
    # A difference of two products is rounded, not they.
    assert (actual.double() - weight).abs().max() <= 2**-23 * weight.abs().max()


@kinds
def test_gguf_matmul_of_unaligned_blocks_is_the_reference(kernel, kind):
    packed, weight = make(kernel, kind, 3, 256)
    memory = torch.cat((torch.zeros(1, dtype=torch.uint8), packed.weight.flatten()))
    x = torch.randn(2, 256)
    moved = dataclasses.replace(packed, weight=memory[1:].view(packed.weight.shape))
    assert moved.weight.data_ptr() % 2
    assert_close(kernel.matmul(x, moved), x.double() @ weight.T)


@kinds
def test_gguf_matmul_of_a_transposed_or_sliced_x_is_the_reference(kernel, kind):
    packed, weight = make(kernel, kind, 6, 256)
    for x in (torch.randn(256, 3).T, torch.randn(3, 300)[:, 20:276], torch.randn(3, 2, 256)[:, 1]):
        assert_close(kernel.matmul(x, packed), x.double() @ weight.T)


@kinds
def test_gguf_matmul_of_a_row_gives_the_same_bits_alone_and_in_any_batch(kernel, kind):
    packed, _ = make(kernel, kind, 20, 768)
    x = torch.randn(70, 768)
    for count in (2, 3, 5, 70):
        together = kernel.matmul(x[:count], packed)
        for row in range(0, count, 9):
            assert torch.equal(kernel.matmul(x[row : row + 1], packed)[0], together[row])


@pytest.mark.parametrize("m,n", [(1, 37), (1, 1000), (70, 333)])
def test_gguf_matmul_with_any_number_of_threads_gives_the_same_bits(cpu_kernel, m, n):
    packed = cpu_kernel.from_gguf(reference.random_blocks("Q5_K", n, 512), "Q5_K", (n, 512))
    x = torch.randn(m, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cpu_kernel.matmul(x, packed)
        for threads in (2, 3, 5) * 3:
            torch.set_num_threads(threads)
            assert torch.equal(cpu_kernel.matmul(x, packed), alone)
    finally:
        torch.set_num_threads(before)


@kinds
def test_gguf_matmul_of_a_row_that_is_not_finite_leaves_the_others(kernel, kind):
    packed, weight = make(kernel, kind, 4, 256)
    for m in (3, 9):
        x = torch.randn(m, 256)
        x[1, 40] = torch.nan
        actual = kernel.matmul(x, packed)
        assert actual[1].isnan().all()
        assert_close(actual[2:], x[2:].double() @ weight.T)


def test_from_gguf_copies_no_blocks(kernel):
    data = reference.random_blocks("Q4_K", 3, 512)
    assert kernel.from_gguf(data, "Q4_K", (3, 512)).weight.data_ptr() == data.data_ptr()
    assert kernel.from_gguf(data.flatten(), "Q4_K", (3, 512)).weight.data_ptr() == data.data_ptr()


def test_gguf_matmul_with_no_output_channels_is_empty(kernel):
    packed = kernel.from_gguf(torch.empty(0, 144, dtype=torch.uint8), "Q4_K", (0, 256))
    assert kernel.matmul(torch.randn(3, 256), packed).shape == (3, 0)


@pytest.mark.parametrize(
    "kind,shape,data,message",
    [
        ("Q2_K", (3, 256), torch.zeros(3, 84, dtype=torch.uint8), 'one of Q4_0, .*, got "Q2_K"'),
        ("Q4_K", (3, 128), torch.zeros(3, 72, dtype=torch.uint8), "K a multiple of Q4_K's 256"),
        ("Q4_0", (3, 0), torch.zeros(3, 0, dtype=torch.uint8), "K a multiple of Q4_0's 32"),
        ("Q4_0", (3, 64), torch.zeros(3, 18, dtype=torch.uint8), r"3 rows of 36 bytes .* got .*\(3, 18\)"),
        ("Q4_0", (3, 32), torch.zeros(3, 18, dtype=torch.int8), "must be uint8 .* got torch.int8"),
    ],
)
def test_from_gguf_of_a_bad_argument_raises_with_its_value(kernel, kind, shape, data, message):
    with pytest.raises(ValueError, match=message):
        kernel.from_gguf(data, kind, shape)


def test_gguf_matmul_of_a_bad_argument_raises_with_its_name(kernel):
    packed, _ = make(kernel, "Q6_K", 6, 256)
    x = torch.randn(3, 256)
    for arguments, message in [
        ((x.double(), packed), "x must be float32, float16 or bfloat16, got Double"),
        ((x, packed, torch.randn(5)), "bias must have size 6 in dimension 0, got 5"),
        ((x, packed, torch.randn(6).half()), "bias must be Float, got Half"),
        ((x, packed, None, torch.empty(3, 6).half()), "out must be Float, got Half"),
        ((x, dataclasses.replace(packed, weight=packed.weight[:, 1:])), "weight must have size 210"),
        ((x, dataclasses.replace(packed, kind="Q4_K")), "weight must have size 144 in dimension 1, got 210"),
        (
            (x, dataclasses.replace(packed, weight=packed.weight.view(torch.int8))),
            "weight must be Byte, got Char",
        ),
        (
            (torch.randn(3, 128), dataclasses.replace(packed, shape=(6, 128))),
            "a multiple of the 256 values of a block as columns, got 128",
        ),
        (
            (x, dataclasses.replace(packed, weight=packed.weight.T.contiguous().T)),
            "weight must be contiguous",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            kernel.matmul(*arguments)


def test_gguf_operator_of_another_type_of_blocks_raises_with_its_number(cpu_kernel):
    namespace = cpu_kernel._ops.ops
    packed, _ = make(cpu_kernel, "Q6_K", 6, 256)
    with pytest.raises(RuntimeError, match="block_type must be .*, got 7"):
        namespace.gguf_matmul(torch.empty(3, 6), torch.randn(3, 256), packed.weight, None, 7)


def test_gguf_operator_keeps_the_promises_of_its_schema(cpu_kernel):
    namespace = cpu_kernel._ops.ops
    packed, _ = make(cpu_kernel, "Q4_K", 6, 256)
    for bias in (None, torch.randn(6)):
        given = (torch.empty(3, 6), torch.randn(3, 256), packed.weight, bias, 12)
        torch.library.opcheck(namespace.gguf_matmul.default, given)


def test_gguf_matmul_under_torch_compile_is_matmul(cpu_kernel):
    packed, _ = make(cpu_kernel, "Q4_0", 6, 256)
    x = torch.randn(3, 256)
    compiled = torch.compile(lambda x: cpu_kernel.matmul(x, packed) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), cpu_kernel.matmul(x, packed) + 1)
