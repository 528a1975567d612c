"""The functions and layers that return new tensors: forward and backward against float64, views, torch.compile."""

from __future__ import annotations

import pytest
import rows_reference as reference
import torch
from torch import nn

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_close(actual, expected, dtype=None):
    """Relative to the largest absolute value of all that is expected."""
    assert actual.shape == expected.shape
    error = ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    assert error <= TOLERANCE[dtype or actual.dtype], f"relative error {error:.2e}"


def half_rotated(x):
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def rotary_reference(q, k, cos, sin, unsqueeze_dim=1):
    """The definition that transformers' models share, in float64."""
    cos, sin = cos.double().unsqueeze(unsqueeze_dim), sin.double().unsqueeze(unsqueeze_dim)
    return tuple(x.double() * cos + half_rotated(x.double()) * sin for x in (q, k))


def angles(dtype, *shape):
    half = torch.rand(*shape) * 6.28
    full = torch.cat((half, half), dim=-1)
    return full.cos().to(dtype), full.sin().to(dtype)


def leaf(x):
    return x.detach().clone().requires_grad_()


@dtypes
def test_apply_rms_norm_forward_and_backward_are_the_reference(kernel, dtype):
    x, weight = leaf(torch.randn(2, 3, 65).to(dtype)), leaf(torch.randn(65).to(dtype))
    grad = torch.randn(2, 3, 65).to(dtype)
    exact_x, exact_weight = leaf(x.double()), leaf(weight.double())
    exact = reference.rms_norm(exact_x, exact_weight, 1e-6)
    out = kernel.apply_rms_norm(x, weight, 1e-6)
    assert out.dtype == dtype
    assert_close(out, exact)
    out.backward(grad)
    exact.backward(grad.double())
    assert_close(x.grad, exact_x.grad)
    assert_close(weight.grad, exact_weight.grad)


def test_apply_rms_norm_of_two_dtypes_is_of_the_wider(kernel):
    x, weight = torch.randn(3, 64).to(torch.bfloat16), torch.randn(64)
    out = kernel.apply_rms_norm(x, weight, 1e-6)
    assert out.dtype == torch.float32
    assert_close(out, reference.rms_norm(x, weight, 1e-6))


@dtypes
def test_apply_silu_and_mul_forward_and_backward_are_the_reference(kernel, dtype):
    x = leaf(torch.randn(3, 2, 66).to(dtype))
    grad = torch.randn(3, 2, 33).to(dtype)
    exact_x = leaf(x.double())
    exact = reference.silu_and_mul(exact_x)
    out = kernel.apply_silu_and_mul(x)
    assert_close(out, exact)
    out.backward(grad)
    exact.backward(grad.double())
    assert_close(x.grad, exact_x.grad)


@dtypes
@pytest.mark.parametrize("unsqueeze_dim", [1, 2])
@pytest.mark.parametrize("batch", [1, 2], ids=["shared-angles", "angles-each"])
def test_apply_rotary_forward_and_backward_are_the_reference(kernel, dtype, unsqueeze_dim, batch):
    shapes = [(2, heads, 5, 16) if unsqueeze_dim == 1 else (2, 5, heads, 16) for heads in (4, 2)]
    cos, sin = angles(dtype, batch, 5, 8)
    given = [leaf(torch.randn(shape).to(dtype)) for shape in shapes]
    exact_given = [leaf(x.double()) for x in given]
    before = [x.detach().clone() for x in given]
    grads = [torch.randn(shape).to(dtype) for shape in shapes]
    exact = rotary_reference(*exact_given, cos, sin, unsqueeze_dim)
    outs = kernel.apply_rotary_transformers(*given, cos, sin, unsqueeze_dim)
    torch.autograd.backward(outs, grads)
    torch.autograd.backward(exact, [grad.double() for grad in grads])
    for i in range(2):
        assert_close(outs[i], exact[i].detach())
        assert_close(given[i].grad, exact_given[i].grad)
        assert torch.equal(given[i], before[i])


def test_gradients_of_gradients_are_the_reference(kernel):
    """Of a penalty on the gradient, which runs through every backward pass once more."""
    x, weight = leaf(torch.randn(1, 2, 3, 8)), torch.randn(8)
    cos, sin = angles(torch.float32, 1, 3, 4)

    def penalty(x, norm, rotate, gate):
        q, k = rotate(norm(x, weight, 1e-3), x * x, cos, sin)
        (slope,) = torch.autograd.grad(gate(q * k).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.pow(2).sum(), x)[0]

    ours = (kernel.apply_rms_norm, kernel.apply_rotary_transformers, kernel.apply_silu_and_mul)
    exact = penalty(leaf(x.double()), reference.rms_norm, rotary_reference, reference.silu_and_mul)
    actual = penalty(x, *ours)
    assert ((actual.double() - exact).abs().max() / exact.abs().max()).item() < 1e-4


def test_functions_of_views_are_those_of_copies(kernel):
    wide = torch.randn(2, 6, 3, 16)
    x = wide.transpose(1, 2)[..., ::2]
    weight = torch.randn(16)[::2].contiguous()
    assert torch.equal(
        kernel.apply_rms_norm(x, weight, 1e-6), kernel.apply_rms_norm(x.contiguous(), weight, 1e-6)
    )
    assert torch.equal(kernel.apply_silu_and_mul(x), kernel.apply_silu_and_mul(x.contiguous()))
    cos, sin = angles(torch.float32, 1, 6, 4)
    for of_view, of_copy in zip(
        kernel.apply_rotary_transformers(x, x, cos, sin),
        kernel.apply_rotary_transformers(x.contiguous(), x.contiguous(), cos, sin),
    ):
        assert torch.equal(of_view, of_copy)


def test_apply_rotary_with_heads_nowhere_raises(kernel):
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(RuntimeError, match="unsqueeze_dim must be 1 or 2, got 3"):
        kernel.apply_rotary_transformers(q, q, *angles(torch.float32, 1, 3, 4), 3)


def test_apply_rotary_of_a_part_of_the_heads_leaves_the_rest(kernel):
    q, k = torch.randn(2, 3, 5, 24), torch.randn(2, 1, 5, 24)
    cos, sin = angles(torch.float32, 1, 5, 8)
    exact = rotary_reference(q[..., :16], k[..., :16], cos, sin)
    for x, out, part in zip((q, k), kernel.apply_rotary_transformers(q, k, cos, sin), exact):
        assert_close(out[..., :16], part)
        assert torch.equal(out[..., 16:], x[..., 16:])


def test_apply_rotary_with_angles_of_another_dtype_has_that_of_the_heads(kernel):
    q = torch.randn(1, 2, 5, 16).bfloat16()
    cos, sin = angles(torch.float32, 1, 5, 8)
    outs = kernel.apply_rotary_transformers(q, q, cos, sin)
    for out, exact in zip(outs, rotary_reference(q, q, cos, sin)):
        assert out.dtype == torch.bfloat16
        assert_close(out, exact)


@pytest.mark.parametrize(
    ("q", "k", "cos", "message"),
    [
        ((2, 3, 8), (1, 2, 3, 8), (1, 3, 8), "q must have 4 dimensions"),
        ((1, 2, 3, 8), (2, 3, 8), (1, 3, 8), "k must have 4 dimensions"),
        (
            (1, 2, 3, 8),
            (1, 2, 3, 8),
            (1, 4, 8),
            "cos must have 3 dimensions: 1 or the batch of q, 1, its 3 tokens",
        ),
        (
            (3, 2, 3, 8),
            (3, 2, 3, 8),
            (2, 3, 8),
            "cos must have 3 dimensions: 1 or the batch of q, 3, its 3 tokens",
        ),
        (
            (1, 2, 3, 8),
            (1, 2, 3, 4),
            (1, 3, 8),
            "cos must have an even width of at most the 4 elements of a head of k",
        ),
        (
            (1, 2, 3, 8),
            (1, 2, 3, 8),
            (1, 3, 7),
            "cos must have an even width of at most the 8 elements of a head of q",
        ),
    ],
)
def test_apply_rotary_of_shapes_that_do_not_fit_raises(kernel, q, k, cos, message):
    given = (torch.randn(q), torch.randn(k), torch.randn(cos), torch.randn(cos))
    with pytest.raises(RuntimeError, match=message):
        kernel.apply_rotary_transformers(*given)


def test_apply_rms_norm_without_need_of_gradients_keeps_none(kernel):
    x, weight = torch.randn(3, 8), nn.Parameter(torch.ones(8))
    assert kernel.apply_rms_norm(x, weight, 1e-6).requires_grad
    with torch.no_grad():
        assert not kernel.apply_rms_norm(x, weight, 1e-6).requires_grad


def test_layers_add_nothing_to_a_module_but_forward_and_flags(cpu_kernel):
    names = set(cpu_kernel.layers.__all__) - {
        "FatreluAndMul"
    }  # which is made with a threshold, and lent to none
    for layer in (getattr(cpu_kernel.layers, name) for name in names):
        assert layer.__init__ is nn.Module.__init__
        assert set(dir(layer)) - set(dir(nn.Module)) <= {"can_torch_compile", "has_backward"}
        assert layer.can_torch_compile
        trains = {"RMSNorm", "LlamaRMSNorm", "SiluAndMul", "apply_rotary_transformers"}
        assert layer.has_backward == (layer.__name__ in trains)


def test_layers_lend_their_forward(cpu_kernel):
    norm = nn.Module()
    norm.weight, norm.variance_epsilon = nn.Parameter(torch.randn(8)), 1e-3
    x = torch.randn(2, 8)
    expected = reference.rms_norm(x, norm.weight, 1e-3)
    for layer in (cpu_kernel.layers.RMSNorm, cpu_kernel.layers.LlamaRMSNorm):
        assert_close(layer.forward(norm, x), expected)
    assert_close(cpu_kernel.layers.SiluAndMul()(x), reference.silu_and_mul(x))
    q, k = torch.randn(1, 3, 2, 8), torch.randn(1, 1, 2, 8)
    cos, sin = angles(torch.float32, 1, 2, 4)
    rotated = cpu_kernel.layers.apply_rotary_transformers()(q, k, cos, sin)
    for actual, expected in zip(rotated, rotary_reference(q, k, cos, sin)):
        assert_close(actual, expected)


@pytest.mark.slow
def test_functions_under_torch_compile_with_gradients_are_themselves(cpu_kernel):
    weight = nn.Parameter(torch.randn(32))
    cos, sin = angles(torch.float32, 1, 5, 8)

    def block(x):
        normed = cpu_kernel.apply_rms_norm(x, weight, 1e-6)
        q, k = cpu_kernel.apply_rotary_transformers(
            normed.view(2, 2, 5, 16), normed.view(2, 2, 5, 16), cos, sin
        )
        return cpu_kernel.apply_silu_and_mul(q + 2 * k)

    x = torch.randn(2, 5, 32)
    eager, compiled = leaf(x), leaf(x)
    expected = block(eager)
    expected.sum().backward()
    expected_weight_grad, weight.grad = weight.grad, None
    out = torch.compile(block, backend="aot_eager", fullgraph=True)(compiled)
    out.sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(compiled.grad, eager.grad)
    torch.testing.assert_close(weight.grad, expected_weight_grad)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend="aot_eager", fullgraph=True)(x), block(x))


def test_operators_keep_the_promises_of_their_schemas(cpu_kernel):
    """Mutation is declared, the fakes agree, aliasing is none: what torch.compile relies on."""
    namespace = cpu_kernel._ops.ops
    x, weight = torch.randn(3, 64), torch.randn(64)
    positions, table = torch.arange(3), torch.randn(3, 16)
    q, k = torch.randn(3, 4, 16), torch.randn(3, 2, 16)
    qkv, caches = torch.randn(3, 128), (torch.zeros(2, 4, 2, 16), torch.zeros(2, 4, 2, 16))
    norms, heads = (torch.randn(16), None), (q[None], k[None])
    for op, arguments in {
        "rms_norm": (torch.empty(3, 64), x, weight, 1e-6),
        "fused_add_rms_norm": (x.clone(), x.clone(), weight, 1e-6),
        "silu_and_mul": (torch.empty(3, 32), x),
        "rotary_embedding": (positions, q, k, 16, table, True),
        "apply_rotary": (x, x.clone(), x, x, torch.empty(3, 64), torch.empty(3, 64), True),
        "rotate_halves": (*heads, table[None], table[None], *(torch.empty_like(x) for x in heads), 2),
        "qk_norm_rope_cache": (qkv, *norms, positions, table, *caches, positions, 4, True, 1e-6),
    }.items():
        torch.library.opcheck(getattr(namespace, op).default, arguments)
    torch.library.opcheck(namespace.rotary_embedding.default, (positions, q, None, 16, table, True))
