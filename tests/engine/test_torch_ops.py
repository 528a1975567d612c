"""The plain-torch slots against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch

from engine import torch_ops
from engine.config import Rope
from engine.rope import cos_sin_cache


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_attend_over_shuffled_blocks_equals_softmax_in_float64(
    q_heads: int, kv_heads: int, block_size: int
) -> None:
    rng, size = generator(q_heads * 31 + block_size), 16
    lengths, new = [1, 7, 33, 16], [1, 7, 5, 1]  # decode, whole prompt, chunk, decode
    widest = -(-max(lengths) // block_size)
    blocks = torch.randperm(len(lengths) * widest, generator=rng).view(len(lengths), widest)
    caches = torch.full((2, blocks.numel(), block_size, kv_heads, size), torch.nan)
    keys = [torch.randn(n, kv_heads, size, generator=rng) for n in lengths]
    values = [torch.randn(n, kv_heads, size, generator=rng) for n in lengths]
    for table, key, value in zip(blocks, keys, values, strict=True):
        positions = torch.arange(len(key))
        slots = table[positions // block_size] * block_size + positions % block_size
        torch_ops.reshape_and_cache_flash(key, value, caches[0], caches[1], slots)
    query = torch.randn(sum(new), q_heads, size, generator=rng)
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)

    out = torch_ops.attend(
        query,
        caches[0],
        caches[1],
        block_tables=blocks.to(torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        query_start_loc=starts,
        scale=0.3,
    )

    for row, (key, value) in enumerate(zip(keys, values, strict=True)):
        for token in range(starts[row], starts[row + 1]):
            seen = lengths[row] - (int(starts[row + 1]) - 1 - token)
            for head in range(q_heads):
                kv = head // (q_heads // kv_heads)
                weights = (key[:seen, kv].double() @ query[token, head].double() * 0.3).softmax(0)
                expected = weights @ value[:seen, kv].double()
                torch.testing.assert_close(out[token, head].double(), expected, rtol=1e-4, atol=1e-5)


def test_cache_write_at_slot_minus_one_is_skipped() -> None:
    caches = torch.zeros(2, 2, 4, 1, 2)
    new = torch.ones(3, 1, 2)
    torch_ops.reshape_and_cache_flash(new, new * 2, caches[0], caches[1], torch.tensor([6, -1, 0]))
    assert caches[0].view(8, 2)[:, 0].tolist() == [1, 0, 0, 0, 0, 0, 1, 0]
    assert caches[1].view(8, 2)[:, 1].tolist() == [2, 0, 0, 0, 0, 0, 2, 0]


@pytest.mark.parametrize("hidden", [1, 769])
def test_norms_equal_their_formula(hidden: int) -> None:
    x, residual = torch.randn(2, 3, hidden, generator=generator(1)).unbind()
    weight = torch.randn(hidden, generator=generator(2))

    def norm(t: torch.Tensor) -> torch.Tensor:
        return (t.double() / (t.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight).float()

    out = torch.empty_like(x)
    torch_ops.rms_norm(out, x, weight, 1e-5)
    torch.testing.assert_close(out, norm(x))

    total = x + residual
    torch_ops.fused_add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(x, norm(total))


@pytest.mark.parametrize("is_neox", [True, False])
def test_rotary_turns_each_pair_by_position_times_frequency(is_neox: bool) -> None:
    size, positions = 8, torch.tensor([0, 3, 11])
    query, key = torch.randn(3, 2 * size), torch.randn(3, size)
    before = query.view(3, 2, size).clone()
    cache = cos_sin_cache(Rope(theta=100.0), size, 16, torch.float32)
    torch_ops.rotary_embedding(positions, query, key, size, cache, is_neox)
    for token, position in enumerate(positions.tolist()):
        for pair in range(size // 2):
            first, second = (pair, pair + size // 2) if is_neox else (2 * pair, 2 * pair + 1)
            turn = complex(math.cos(angle := position * 100 ** (-2 * pair / size)), math.sin(angle))
            for head in range(2):
                expected = complex(before[token, head, first], before[token, head, second]) * turn
                actual = query.view(3, 2, size)[token, head]
                assert complex(actual[first], actual[second]) == pytest.approx(expected, abs=1e-5)


def test_silu_and_mul_gates_the_second_half_by_the_first() -> None:
    x, out = torch.randn(3, 10), torch.empty(3, 5)
    torch_ops.silu_and_mul(out, x)
    torch.testing.assert_close(out, x[:, :5] * x[:, :5].sigmoid() * x[:, 5:])


def test_gelu_tanh_and_mul_gates_the_second_half_by_the_first() -> None:
    x, out = torch.randn(3, 10), torch.empty(3, 5)
    torch_ops.gelu_tanh_and_mul(out, x)
    gate, up = x.chunk(2, dim=-1)
    inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    torch.testing.assert_close(out, gate / 2 * (1 + inner.tanh()) * up)


@pytest.mark.parametrize(
    ("format", "group", "levels"), [("int8", 256, 127), ("int4", 32, 7), ("int4", 128, 7)]
)
def test_quantized_weight_is_within_half_a_level_and_matmul_uses_it(
    format: str, group: int, levels: int
) -> None:
    weight = torch.randn(9, 256, generator=generator(3))
    weight[4] = 0
    packed = torch_ops.quantize(weight, format, group_size=group)
    rounded = torch_ops.dequantize(packed)
    level = weight.view(9, -1, group).abs().amax(-1, keepdim=True) / levels
    error = (rounded - weight).view(9, -1, group).abs()
    assert (error <= level / 2 * 1.001).all()
    assert packed.weight.nbytes == weight.numel() // (2 if format == "int4" else 1)
    x, bias = torch.randn(2, 256, generator=generator(4)), torch.randn(9, generator=generator(5))
    torch.testing.assert_close(torch_ops.matmul(x, packed, bias=bias), x @ rounded.T + bias)


@pytest.mark.parametrize(("format", "columns"), [("int3", 128), ("int4", 100)])
def test_weight_that_cannot_be_quantized_is_refused(format: str, columns: int) -> None:
    with pytest.raises(ValueError, match=r"int3|multiple of the group"):
        torch_ops.quantize(torch.ones(2, columns), format)
