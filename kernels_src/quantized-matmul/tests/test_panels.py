"""int4 weights in panels of eight rows, as `prepack` makes them: the same bits as weights in rows."""

from __future__ import annotations

import dataclasses

import matmul_reference as reference
import pytest
import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (K, group size): of one step and of several, groups shorter and longer than a step, a last step that is not whole.
WIDTHS = [(64, 32), (128, 128), (192, 64), (192, 192), (384, 128), (512, 256), (1024, 512), (1088, 1088)]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(
    scope="module",
    params=["cpu", pytest.param("cpu-baseline", marks=pytest.mark.slow)],
)
def loops(request, builds):
    """The build of each instruction set: a GPU takes rows."""
    return builds(request.path.parent.parent, request.param)


@pytest.fixture(autouse=True)
def processor_with_panels(monkeypatch):
    """`prepack` asks torch; the loops, of whatever instructions they are, take panels anywhere."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def packed_weight(kernel, n, k, group_size, dtype, symmetric=True):
    if group_size not in (256, 512):
        return kernel.quantize(torch.randn(n, k).to(dtype), "int4", group_size, symmetric=symmetric)
    packed = kernel.quantize(torch.randn(n, k).to(dtype), "int4", 128, symmetric=symmetric)
    few = [
        None if t is None else t[:, :: group_size // 128].contiguous() for t in (packed.scales, packed.zeros)
    ]
    return dataclasses.replace(packed, group_size=group_size, scales=few[0], zeros=few[1])


def prepacked(kernel, packed):
    panels = kernel.prepack(packed)
    assert panels.panels and kernel.prepack(panels) is panels
    return panels


@dtypes
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k,group_size", WIDTHS)
def test_matmul_of_a_prepacked_weight_gives_the_same_bits(loops, k, group_size, symmetric, dtype):
    for n, scale_dtype in ((1, torch.float32), (8, torch.float16), (9, torch.bfloat16), (133, torch.float32)):
        packed = packed_weight(loops, n, k, group_size, scale_dtype, symmetric)
        panels = prepacked(loops, packed)
        bias = torch.randn(n).to(dtype)
        for m in (0, 1, 2, 3, 7, 65):
            x = torch.randn(m, k + 5).to(dtype)[:, :k]
            for coarse in (False, True):
                expected = loops.matmul(x, packed, bias, int8_activations=coarse)
                assert torch.equal(loops.matmul(x, panels, bias, int8_activations=coarse), expected)


@dtypes
@pytest.mark.parametrize("m", [1, 5, 70])
def test_matmul_of_a_prepacked_weight_is_the_reference(loops, m, dtype):
    packed = packed_weight(loops, 21, 256, 64, dtype, symmetric=False)
    x, bias = torch.randn(m, 256).to(dtype), torch.randn(21).to(dtype)
    expected = reference.matmul(x, reference.weights(packed), bias)
    actual = loops.matmul(x, prepacked(loops, packed), bias)
    allowed = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert (actual.double() - expected).abs().max() <= allowed * expected.abs().max()


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_prepacked_products_have_equal_bits_alone_in_a_batch_and_with_any_threads(cpu_kernel, threads):
    panels = prepacked(cpu_kernel, cpu_kernel.quantize(torch.randn(1000, 384), "int4"))
    x = torch.randn(9, 384)
    before = torch.get_num_threads()
    together = cpu_kernel.matmul(x, panels)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(torch.cat([cpu_kernel.matmul(row[None], panels) for row in x]), together)
    finally:
        torch.set_num_threads(before)


def test_prepacked_weight_without_rows_gives_none(cpu_kernel):
    packed = dataclasses.replace(
        cpu_kernel.quantize(torch.randn(1, 128), "int4"),
        shape=(0, 128),
        weight=torch.empty(0, 64, dtype=torch.uint8),
        scales=torch.empty(0, 1),
    )
    panels = prepacked(cpu_kernel, packed)
    assert cpu_kernel.matmul(torch.randn(3, 128), panels).shape == (3, 0)
    assert cpu_kernel.dequantize(panels).shape == (0, 128)


@pytest.mark.parametrize("n", [1, 7, 8, 17])
@pytest.mark.parametrize("symmetric", [True, False])
def test_prepacked_weight_stands_for_the_same_values(cpu_kernel, n, symmetric):
    packed = packed_weight(cpu_kernel, n, 192, 64, torch.float16, symmetric)
    panels = prepacked(cpu_kernel, packed)
    assert panels.shape == packed.shape
    assert torch.equal(cpu_kernel.dequantize(panels), reference.weights(packed).float())


def test_prepacked_weight_of_ordered_columns_multiplies_x_in_their_order(cpu_kernel):
    packed = dataclasses.replace(
        cpu_kernel.quantize(torch.randn(9, 128), "int4"), permutation=torch.randperm(128)
    )
    x = torch.randn(3, 128)
    assert torch.equal(cpu_kernel.matmul(x, cpu_kernel.prepack(packed)), cpu_kernel.matmul(x, packed))


@pytest.mark.parametrize(
    "format,k,options", [("int8", 128, {}), ("int4", 96, {"group_size": 32}), ("fp8", 128, {})]
)
def test_weight_with_nothing_to_gain_is_returned_as_it_is(kernel, format, k, options):
    packed = kernel.quantize(torch.randn(9, k), format, **options)
    assert kernel.prepack(packed) is packed


def test_weight_stays_in_rows_where_the_processor_has_no_use_for_panels(cpu_kernel, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    packed = cpu_kernel.quantize(torch.randn(9, 128), "int4")
    assert cpu_kernel.prepack(packed) is packed


@pytest.mark.parametrize(
    "change,words",
    [
        ({"weight": torch.zeros(2, 16, 16, dtype=torch.uint8)}, r"weight must be \[2, 16, 32\]"),
        ({"weight": torch.zeros(1, 16, 32, dtype=torch.uint8)}, r"weight must be \[2, 16, 32\]"),
        ({"weight": torch.zeros(2, 16, 32, dtype=torch.int8)}, "weight must be Byte"),
        ({"scales": torch.ones(2, 2, 8)}, r"scales must be \[2, 1, 8\]"),
        ({"scales": torch.ones(2, 1, 8, dtype=torch.float64)}, "scales must be float32, float16 or bfloat16"),
        ({"zeros": torch.zeros(2, 8, 1, dtype=torch.uint8)}, r"zeros must be \[2, 1, 8\]"),
        ({"weight": torch.zeros(2, 32, 16, dtype=torch.uint8).transpose(1, 2)[..., :32]}, "weight must be"),
        ({"group_size": 48}, "group_size must be"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_panels_that_do_not_fit_are_refused(cpu_kernel, change, words):
    panels = prepacked(cpu_kernel, cpu_kernel.quantize(torch.randn(9, 128), "int4"))
    with pytest.raises(RuntimeError, match=words):
        cpu_kernel.matmul(torch.randn(1, 128), dataclasses.replace(panels, **change))


def test_operator_keeps_the_promises_of_its_schema(cpu_kernel):
    operator = cpu_kernel._ops.ops.int4_panels_matmul.default
    for symmetric in (True, False):
        panels = prepacked(cpu_kernel, packed_weight(cpu_kernel, 9, 128, 64, torch.float32, symmetric))
        given = (
            torch.empty(3, 9),
            torch.randn(3, 128),
            panels.weight,
            panels.scales,
            panels.zeros,
            None,
            64,
            False,
        )
        torch.library.opcheck(operator, given)


def test_prepacked_product_under_torch_compile_is_matmul(cpu_kernel):
    panels = prepacked(cpu_kernel, cpu_kernel.quantize(torch.randn(9, 128), "int4"))
    x = torch.randn(3, 128)
    compiled = torch.compile(lambda x: cpu_kernel.matmul(x, panels) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), cpu_kernel.matmul(x, panels) + 1)
