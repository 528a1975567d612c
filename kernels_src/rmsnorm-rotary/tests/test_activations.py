"""The activation functions against float64, alone and as gates.

Errors are relative to the largest value of a row, or to 0.1 where all are near zero: what is left of a
difference.
"""

from __future__ import annotations

from functools import partial

import pytest
import rows_reference as reference
import torch
from torch import nn

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ALONE = ["silu", "gelu", "gelu_tanh", "gelu_fast", "gelu_new", "gelu_quick"]
GATED = {  # the function, and whether it is of the last half
    "silu_and_mul": ("silu", False),
    "mul_and_silu": ("silu", True),
    "gelu_and_mul": ("gelu", False),
    "gelu_tanh_and_mul": ("gelu_tanh", False),
    "fatrelu_and_mul": ("fatrelu", False),
}
LAYERS = {
    "Silu": "silu",
    "Gelu": "gelu",
    "GeluTanh": "gelu_tanh",
    "FastGELU": "gelu_fast",
    "NewGELU": "gelu_new",
    "QuickGELU": "gelu_quick",
    "SiluAndMul": "silu_and_mul",
    "MulAndSilu": "mul_and_silu",
    "GeluAndMul": "gelu_and_mul",
    "GeluTanhAndMul": "gelu_tanh_and_mul",
    "FatreluAndMul": "fatrelu_and_mul",
}

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
sizes = pytest.mark.parametrize("size", [1, 7, 64, 769, 5125])


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    largest = expected.abs().amax(-1, keepdim=True).clamp_min(0.1)
    error = ((actual.double() - expected).abs() / largest).max().item()
    assert error <= TOLERANCE[actual.dtype], f"relative error {error:.2e}"


def gated_reference(name, x, *threshold):
    function, last = GATED[name]
    left, right = x.double().chunk(2, dim=-1)
    gate, up = (right, left) if last else (left, right)
    return reference.ACTIVATIONS[function](gate, *threshold) * up


@dtypes
@sizes
@pytest.mark.parametrize("name", ALONE)
def test_function_of_rows_is_the_reference(kernel, name, size, dtype):
    x = (torch.randn(3, size) * 4).to(dtype)
    out = torch.full_like(x, torch.nan)
    assert getattr(kernel, name)(out, x) is out
    assert_close(out, reference.ACTIVATIONS[name](x.double()))
    assert getattr(kernel, name)(x, x) is x
    assert torch.equal(x, out)


@dtypes
@sizes
@pytest.mark.parametrize("name", GATED)
def test_function_times_the_other_half_is_the_reference(kernel, name, size, dtype):
    x = (torch.randn(3, 2 * size) * 4).to(dtype)
    out = torch.full((3, size), torch.nan, dtype=dtype)
    threshold = (0.5,) if "fatrelu" in name else ()
    assert getattr(kernel, name)(out, x, *threshold) is out
    assert_close(out, gated_reference(name, x, *threshold))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["silu_and_mul", "mul_and_silu", "gelu_and_mul", "gelu_tanh_and_mul"])
def test_function_is_rounded_before_the_product_as_two_operators_of_torch_would(kernel, name, dtype):
    function, last = GATED[name]
    halves = torch.randn(2, 5, 200).to(dtype)
    alone = getattr(kernel, function)(torch.empty_like(halves[0]), halves[0])
    out = torch.empty_like(alone)
    getattr(kernel, name)(out, torch.cat((halves[1], halves[0]) if last else (halves[0], halves[1]), dim=-1))
    assert torch.equal(out, alone * halves[1])


@pytest.mark.parametrize("name", [*ALONE, "fatrelu"])
def test_functions_of_extreme_values_are_their_limits(kernel, name):
    x = torch.tensor([[-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30, torch.inf, torch.nan]])
    out = torch.empty_like(x)
    if name == "fatrelu":
        kernel.fatrelu_and_mul(out, torch.cat((x, torch.ones_like(x)), dim=-1))
    else:
        getattr(kernel, name)(out, x)
    assert out[0, :4].tolist() == pytest.approx([0.0] * 4, abs=1e-30)
    assert out[0, 4:7].tolist() == [100.0, 1e4, torch.tensor(1e30).item()]
    assert out[0, 7] == torch.inf
    assert out[0, 8].isnan()


def test_fatrelu_at_its_threshold_is_zero(kernel):
    x = torch.tensor([[-1.0, 0.5, 0.75, 2.0]])
    out = torch.empty(1, 2)
    kernel.fatrelu_and_mul(out, x, 0.5)
    assert out.tolist() == [[0.0, 0.0]]
    kernel.fatrelu_and_mul(out, x, -2.0)
    assert out.tolist() == [[-0.75, 1.0]]


def test_functions_of_strided_rows_are_those_of_copies(kernel):
    x = torch.randn(2, 5, 48)[..., 8:40]
    for name in ("gelu", "gelu_and_mul"):
        out = torch.full((2, 5, 40), torch.nan)
        size = 32 if name == "gelu" else 16
        got = getattr(kernel, name)(out[..., 3 : 3 + size], x)
        assert torch.equal(got, getattr(kernel, name)(torch.empty(2, 5, size), x.contiguous()))
        assert out[..., :3].isnan().all()
        assert out[..., 3 + size :].isnan().all()


def test_functions_of_nothing_do_nothing(kernel):
    for shape in ((0, 8), (2, 0)):
        kernel.gelu(torch.empty(shape), torch.empty(shape))
        kernel.silu_and_mul(torch.empty(shape[0], shape[1] // 2), torch.empty(shape))


@pytest.mark.parametrize(
    ("name", "out", "x", "message"),
    [
        ("silu_and_mul", torch.empty(2, 3), torch.randn(2, 7), "even last dimension, got 7"),
        ("gelu_and_mul", torch.empty(2, 3), torch.randn(2, 8), "half of its last dimension, 4"),
        ("gelu", torch.empty(2, 3), torch.randn(2, 4), "out must have the shape of input, rows of 4"),
        ("gelu_quick", torch.empty(2, 4).half(), torch.randn(2, 4), "out must be Float, got Half"),
        ("silu", torch.empty(2, 4), torch.randn(2, 8)[:, ::2], "contiguous in its last dimension"),
        (
            "gelu_new",
            torch.empty(2, 4).int(),
            torch.zeros(2, 4).int(),
            "must be float32, float16 or bfloat16",
        ),
        ("gelu_fast", torch.tensor(0.0), torch.tensor(0.0), "at least 1 dimension"),
        ("mul_and_silu", torch.tensor(0.0), torch.tensor(0.0), "at least 1 dimension"),
    ],
)
def test_function_of_bad_arguments_raises_with_the_reason(kernel, name, out, x, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(kernel, name)(out, x)


def test_layers_are_their_functions_of_any_view(kernel):
    x = torch.randn(2, 6, 16).transpose(0, 1)
    for layer, name in LAYERS.items():
        threshold = (0.5,) if "fatrelu" in name else ()
        out = torch.empty(6, 2, 8 if name in GATED else 16)
        expected = getattr(kernel, name)(out, x.contiguous(), *threshold)
        assert torch.equal(getattr(kernel.layers, layer)(*threshold)(x), expected)


def test_operators_keep_the_promises_of_their_schemas(cpu_kernel):
    namespace = cpu_kernel._ops.ops
    x = torch.randn(3, 64)
    for name in (*ALONE, *GATED):
        out = torch.empty(3, 32 if name in GATED else 64)
        threshold = (0.5,) if "fatrelu" in name else ()
        torch.library.opcheck(getattr(namespace, name).default, (out, x, *threshold))


def test_layers_under_torch_compile_are_themselves(cpu_kernel):
    layers = cpu_kernel.layers
    block = nn.Sequential(
        layers.Gelu(), layers.FatreluAndMul(0.25), layers.QuickGELU(), layers.GeluTanhAndMul()
    )
    x = torch.randn(3, 64)
    compiled = partial(torch.compile, backend="aot_eager", fullgraph=True)(block)
    assert torch.equal(compiled(x), block(x))
