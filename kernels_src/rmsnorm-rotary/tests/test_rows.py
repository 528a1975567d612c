"""The row kernels against float64. Errors are relative to the largest absolute value of the expected row."""

from __future__ import annotations

import pytest
import rows_reference as reference
import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SIZES = [1, 7, 8, 64, 768, 769, 5120, 5125, 8192]

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
sizes = pytest.mark.parametrize("size", SIZES)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    largest = expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    error = ((actual.double() - expected).abs() / largest).max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


@dtypes
@sizes
def test_rms_norm_of_rows_is_the_reference(kernel, size, dtype):
    x, weight = torch.randn(3, size).to(dtype), torch.randn(size).to(dtype)
    out = torch.full_like(x, torch.nan)
    kernel.rms_norm(out, x, weight, 1e-6)
    assert_close(out, reference.rms_norm(x, weight, 1e-6))


@dtypes
@sizes
def test_fused_add_rms_norm_of_rows_is_the_reference_of_the_exact_sum(kernel, size, dtype):
    x, residual = torch.randn(3, size).to(dtype), torch.randn(3, size).to(dtype)
    weight = torch.randn(size).to(dtype)
    total = x.float() + residual.float()
    expected = reference.rms_norm(total, weight, 1e-5)
    kernel.fused_add_rms_norm(x, residual, weight, 1e-5)
    assert_close(x, expected)
    assert torch.equal(residual, total.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fused_add_rms_norm_of_every_16_bit_value_rounds_the_sum_to_nearest_even(kernel, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x, residual = every[torch.randperm(2**16)].view(8, -1), every.clone().view(8, -1)
    expected = (x.float() + residual.float()).to(dtype)
    kernel.fused_add_rms_norm(x, residual, torch.ones(x.shape[1], dtype=dtype), 1e-5)
    torch.testing.assert_close(residual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001], ids=hex)
@pytest.mark.parametrize("is_neox", [True, False])
def test_rotary_by_an_angle_that_is_no_number_is_none(kernel, bits, is_neox):
    """Whatever its lower half is: it must not be rounded up to a number."""
    table = torch.ones(1, 32)
    table.view(torch.int32)[0, 3] = bits
    query = torch.randn(1, 32).bfloat16()
    kernel.rotary_embedding(torch.zeros(1, dtype=torch.int64), query, None, 32, table, is_neox)
    rotated = (3, 19) if is_neox else (6, 7)
    assert query.isnan().nonzero()[:, 1].tolist() == list(rotated)


def test_rms_norm_of_no_rows_or_no_columns_does_nothing(kernel):
    kernel.rms_norm(torch.empty(0, 8), torch.empty(0, 8), torch.ones(8), 1e-6)
    kernel.rms_norm(torch.empty(2, 0), torch.empty(2, 0), torch.ones(0), 1e-6)


def test_rms_norm_of_a_row_of_zeros_is_zeros(kernel):
    out = torch.full((1, 16), torch.nan)
    kernel.rms_norm(out, torch.zeros(1, 16), torch.ones(16), 1e-6)
    assert torch.equal(out, torch.zeros(1, 16))


def test_rms_norm_in_place_is_rms_norm(kernel):
    x, weight = torch.randn(4, 100), torch.randn(100)
    expected = reference.rms_norm(x, weight, 1e-6)
    kernel.rms_norm(x, x, weight, 1e-6)
    assert_close(x, expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda: torch.randn(6, 50)[:, 3:40],
        lambda: torch.randn(6, 50)[::2, :37],
        lambda: torch.randn(2, 3, 50)[:, :, :37],
        lambda: torch.randn(37),
        lambda: torch.randn(5, 1, 4, 37)[:, :, 1:2],
    ],
)
def test_rms_norm_of_evenly_spaced_rows_is_the_reference_and_touches_nothing_else(kernel, view):
    x, weight = view(), torch.randn(37)
    before = x._base.clone() if x._base is not None else x.clone()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kernel.rms_norm(out, x, weight, 1e-6)
    assert_close(out, reference.rms_norm(x, weight, 1e-6))
    assert torch.equal(x._base if x._base is not None else x, before)


def test_fused_add_rms_norm_of_views_leaves_what_is_outside_them(kernel):
    wide, wide_residual = torch.randn(4, 64), torch.randn(4, 64)
    kept, kept_residual = wide[:, 40:].clone(), wide_residual[:, 40:].clone()
    expected = reference.rms_norm(wide[:, :40] + wide_residual[:, :40], torch.ones(40), 1e-6)
    kernel.fused_add_rms_norm(wide[:, :40], wide_residual[:, :40], torch.ones(40), 1e-6)
    assert_close(wide[:, :40], expected)
    assert torch.equal(wide[:, 40:], kept)
    assert torch.equal(wide_residual[:, 40:], kept_residual)


def make_rotary(dtype, *, tokens=5, heads=3, kv_heads=1, head_size=64, rotary_dim=None, max_position=50):
    rotary_dim = rotary_dim or head_size
    angles = torch.outer(
        torch.arange(max_position), 10000.0 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    )
    return {
        "positions": torch.randint(0, max_position, (tokens,)),
        "query": torch.randn(tokens, heads, head_size).to(dtype),
        "key": torch.randn(tokens, kv_heads, head_size).to(dtype),
        "head_size": head_size,
        "cos_sin_cache": torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype),
    }


def check_rotary(kernel, args, is_neox):
    expected = [
        reference.rotary(args["positions"], args[name], args["cos_sin_cache"], is_neox)
        for name in ("query", "key")
    ]
    kernel.rotary_embedding(**args, is_neox=is_neox)
    assert_close(args["query"], expected[0])
    assert_close(args["key"], expected[1])


neox = pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])


@neox
@dtypes
@pytest.mark.parametrize(
    "head_size,rotary_dim", [(32, 32), (64, 16), (80, 80), (96, 40), (120, 6), (128, 128), (256, 64)]
)
def test_rotary_embedding_of_each_width_is_the_reference(kernel, head_size, rotary_dim, dtype, is_neox):
    check_rotary(kernel, make_rotary(dtype, head_size=head_size, rotary_dim=rotary_dim), is_neox)


@neox
def test_rotary_embedding_with_a_float32_cache_for_half_precision_is_the_reference(kernel, is_neox):
    args = make_rotary(torch.bfloat16)
    args["cos_sin_cache"] = make_rotary(torch.float32)["cos_sin_cache"]
    check_rotary(kernel, args, is_neox)


@neox
def test_rotary_embedding_without_a_key_rotates_the_query(kernel, is_neox):
    args = make_rotary(torch.float32)
    expected = reference.rotary(args["positions"], args["query"], args["cos_sin_cache"], is_neox)
    kernel.rotary_embedding(**(args | {"key": None}), is_neox=is_neox)
    assert_close(args["query"], expected)


@neox
def test_rotary_embedding_of_views_of_a_fused_qkv_leaves_the_values(kernel, is_neox):
    args = make_rotary(torch.float32, heads=4, kv_heads=2, head_size=32)
    qkv = torch.cat([args["query"], args["key"], torch.randn(5, 2, 32)], dim=1).flatten(1)
    values = qkv[:, 6 * 32 :].clone()
    expected = [
        reference.rotary(args["positions"], args[n], args["cos_sin_cache"], is_neox) for n in ("query", "key")
    ]
    args |= {"query": qkv[:, : 4 * 32], "key": qkv[:, 4 * 32 : 6 * 32]}
    kernel.rotary_embedding(**args, is_neox=is_neox)
    assert_close(args["query"].unflatten(1, (4, 32)), expected[0])
    assert_close(args["key"].unflatten(1, (2, 32)), expected[1])
    assert torch.equal(qkv[:, 6 * 32 :], values)


def test_rotary_embedding_of_a_batch_is_that_of_its_tokens(kernel):
    args = make_rotary(torch.float32, tokens=6)
    batched = {k: args[k].unflatten(0, (2, 3)).clone() for k in ("positions", "query", "key")}
    kernel.rotary_embedding(**(args | batched), is_neox=True)
    kernel.rotary_embedding(**args, is_neox=True)
    assert torch.equal(batched["query"].flatten(0, 1), args["query"])
    assert torch.equal(batched["key"].flatten(0, 1), args["key"])


def test_rotary_embedding_of_no_tokens_does_nothing(kernel):
    kernel.rotary_embedding(**make_rotary(torch.float32, tokens=0), is_neox=True)


def test_rotary_embedding_of_a_position_out_of_range_raises_and_rotates_nothing(cpu_kernel):
    args = make_rotary(torch.float32)
    args["positions"][3] = 50
    before = args["query"].clone()
    with pytest.raises(
        RuntimeError, match=r"positions\[3\] must be a row of cos_sin_cache \(0 to 49\), got 50"
    ):
        cpu_kernel.rotary_embedding(**args, is_neox=True)
    assert torch.equal(args["query"], before)


@pytest.mark.parametrize("conj", [False, True])
@dtypes
@pytest.mark.parametrize("size", [1, 15, 16, 30, 64])
@pytest.mark.parametrize("shape,angles", [((2, 7, 3), (7, 1)), ((14, 3), (14, 1)), ((5,), ()), ((), ())])
def test_apply_rotary_of_halves_of_heads_is_the_reference(kernel, shape, angles, size, dtype, conj):
    x = torch.randn(*shape, 2 * size + 5).to(dtype)
    cos, sin = torch.randn(2, *angles, size).to(dtype)
    x1, x2, rest = x[..., :size], x[..., size : 2 * size], x[..., 2 * size :].clone()
    turn = torch.complex(cos.double(), -sin.double() if conj else sin.double())
    expected = torch.complex(x1.double(), x2.double()) * turn
    kernel.apply_rotary(x1, x2, cos, sin, x1, x2, conj)
    assert_close(torch.cat((x1, x2), dim=-1), torch.cat((expected.real, expected.imag), dim=-1))
    assert torch.equal(x[..., 2 * size :], rest)


def test_apply_rotary_of_every_other_element_into_others_is_the_reference(kernel):
    x, out = torch.randn(2, 5, 3, 40), torch.full((3, 2, 5, 2, 20), torch.nan)
    cos, sin = torch.randn(2, 1, 20).expand(2, 5, 20)[:, :, None]
    to = out[:, :, :, 0].permute(1, 2, 0, 3), out[:, :, :, 1].permute(1, 2, 0, 3)
    kernel.apply_rotary(x[..., ::2], x[..., 1::2], cos, sin, *to, False)
    turn = torch.complex(cos.double(), sin.double())
    expected = torch.complex(x[..., ::2].double(), x[..., 1::2].double()) * turn
    assert_close(to[0].contiguous(), expected.real)
    assert_close(to[1].contiguous(), expected.imag)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0), (3, 0, 2, 8)])
def test_apply_rotary_of_nothing_does_nothing(kernel, shape):
    kernel.apply_rotary(*(torch.empty(shape) for _ in range(6)), False)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"x2": torch.zeros(3, 4, 7)}, "x2 must have the shape of x1"),
        ({"out1": torch.zeros(4, 8)}, "out1 must have the shape of x1"),
        ({"cos": torch.zeros(2, 1, 8)}, "cos must have size 1 or that of x1, 3, in dimension 0, got 2"),
        ({"sin": torch.zeros(1, 3, 1, 8)}, "sin must have at most the 3 dimensions of x1, got 4"),
        ({"cos": torch.zeros(8).half()}, "cos must be Float, got Half"),
        ({"x1": torch.zeros(3, 4, 8).int()}, "x1 must be float32, float16 or bfloat16"),
        ({"x1": torch.zeros(1, 1, 3, 4, 8)}, "x1 must have 1 to 4 dimensions, got 5"),
    ],
)
def test_apply_rotary_of_a_bad_argument_raises_with_its_name(kernel, change, message):
    given = {name: torch.zeros(3, 4, 8) for name in ("x1", "x2", "cos", "sin", "out1", "out2")}
    with pytest.raises(RuntimeError, match=message):
        kernel.apply_rotary(**(given | change), conj=False)


def test_row_kernels_twice_give_the_same_bits(kernel, monkeypatch):
    x, weight = torch.randn(3, 5125), torch.randn(5125)
    first, second = torch.empty_like(x), torch.empty_like(x)
    kernel.rms_norm(first, x, weight, 1e-6)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", "reverse")
    kernel.rms_norm(second, x, weight, 1e-6)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((torch.empty(2, 8), torch.randn(2, 8), torch.ones(7), 1e-6), "weight must have the 8 elements"),
        (
            (torch.empty(2, 8), torch.randn(2, 8), torch.ones(8).half(), 1e-6),
            "weight must be Float, got Half",
        ),
        ((torch.empty(2, 7), torch.randn(2, 8), torch.ones(8), 1e-6), "out must have the shape of input"),
        ((torch.empty(2, 8).half(), torch.randn(2, 8), torch.ones(8), 1e-6), "out must be Float, got Half"),
        (
            (torch.empty(2, 8), torch.randn(2, 16)[:, ::2], torch.ones(8), 1e-6),
            "contiguous in its last dimension",
        ),
        (
            (torch.empty(4, 3, 8), torch.randn(3, 4, 8).transpose(0, 1), torch.ones(8), 1e-6),
            "evenly spaced rows",
        ),
        (
            (torch.empty(2, 8).int(), torch.ones(2, 8).int(), torch.ones(8).int(), 1e-6),
            "input must be float32",
        ),
    ],
)
def test_rms_norm_of_a_bad_argument_raises_with_its_name(kernel, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        kernel.rms_norm(*arguments)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"head_size": 48}, "heads of 48, got 64"),
        ({"head_size": 0}, "head_size must be positive"),
        ({"positions": torch.zeros(4, dtype=torch.int64)}, "size of positions, 4"),
        ({"positions": torch.zeros(5, dtype=torch.int32)}, "positions must be Long, got Int"),
        ({"cos_sin_cache": torch.zeros(50, 66)}, "even width of at most head_size 64, got 66"),
        ({"cos_sin_cache": torch.zeros(50, 33)}, "even width"),
        ({"key": torch.zeros(5, 1, 64).half()}, "key must be Float, got Half"),
        ({"query": torch.zeros(5, 100)}, "divisible by head_size 64, got 100"),
    ],
)
def test_rotary_embedding_of_a_bad_argument_raises_with_its_name(kernel, change, message):
    with pytest.raises(RuntimeError, match=message):
        kernel.rotary_embedding(**(make_rotary(torch.float32) | change), is_neox=True)


def test_row_kernels_under_torch_compile_are_themselves(cpu_kernel):
    x, weight = torch.randn(3, 64), torch.randn(64)

    def layer(x):
        normed = torch.empty_like(x)
        cpu_kernel.rms_norm(normed, x, weight, 1e-6)
        gated = x.new_empty(3, 32)
        cpu_kernel.silu_and_mul(gated, normed)
        return gated

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
