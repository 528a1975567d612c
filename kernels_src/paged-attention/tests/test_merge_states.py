"""`merge_states`: partial attentions of disjoint keys are the attention of all."""

from __future__ import annotations

import attention_reference as reference
import pytest
import torch
from test_attend import TOLERANCE, assert_close, make_step


def random_state(tokens, heads, head_size, dtype):
    return torch.randn(tokens, heads, head_size).to(dtype), torch.randn(tokens, heads) * 4


def expected_state(out_a, lse_a, out_b, lse_b):
    weights = torch.softmax(torch.stack([lse_a, lse_b]).double(), dim=0)[..., None]
    return weights[0] * out_a.double() + weights[1] * out_b.double(), torch.logaddexp(
        lse_a.double(), lse_b.double()
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 3, 36), (7, 4, 64), (3, 2, 256), (0, 4, 64), (2, 0, 8)], ids=str
)
def test_merge_states_is_the_weighted_sum(kernel, shape, dtype):
    a, b = random_state(*shape, dtype), random_state(*shape, dtype)
    out, lse = kernel.merge_states(*a, *b)
    expected, expected_lse = expected_state(*a, *b)
    assert_close(out, expected, dtype)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-6)


def test_merge_states_of_two_halves_of_the_keys_is_attend_over_all(kernel):
    step = make_step(3, [(1, 32), (1, 32)])
    sinks = torch.randn(4)
    halves = [
        kernel.attend(
            **(
                step
                | {"block_tables": step["block_tables"][:, half : half + 1].contiguous(), "seq_lens": lens}
            ),
            causal=False,
            sinks=sinks if half == 0 else None,
            return_lse=True,
        )
        for half, lens in (
            (0, torch.tensor([16, 16], dtype=torch.int32)),
            (1, torch.tensor([16, 0], dtype=torch.int32)),
        )
    ]
    out, lse = kernel.merge_states(*halves[0], *halves[1])
    step["seq_lens"] = torch.tensor([32, 16], dtype=torch.int32)
    expected, expected_lse = reference.attend(**step, sinks=sinks)
    assert_close(out, expected, torch.float32)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_merge_states_of_a_part_that_saw_nothing_is_the_other_part(kernel):
    out, lse = random_state(4, 2, 8, torch.float32)
    nothing = torch.full_like(out, torch.nan), torch.full_like(lse, -torch.inf)
    for merged in (kernel.merge_states(out, lse, *nothing), kernel.merge_states(*nothing, out, lse)):
        assert torch.equal(merged[0], out) and torch.equal(merged[1], lse)
    merged = kernel.merge_states(*nothing, *nothing)
    assert torch.equal(merged[0], torch.zeros_like(out)) and torch.equal(merged[1], nothing[1])


def test_merge_states_of_far_apart_sums_is_the_larger_part(kernel):
    a, b = random_state(3, 2, 8, torch.float32), random_state(3, 2, 8, torch.float32)
    a[1].fill_(3e38)
    b[1].fill_(-3e38)
    out, lse = kernel.merge_states(*a, *b)
    assert torch.equal(out, a[0]) and torch.equal(lse, a[1])


@pytest.mark.parametrize("part", [0, 1])
def test_merge_states_into_one_of_the_parts_is_merge_states(kernel, part):
    states = random_state(9, 3, 40, torch.bfloat16), random_state(9, 3, 40, torch.bfloat16)
    expected = kernel.merge_states(*states[0], *states[1])
    out, lse = kernel.merge_states(*states[0], *states[1], *states[part])
    assert out is states[part][0] and lse is states[part][1]
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


def test_merge_states_of_views_is_merge_states(kernel):
    a, b = random_state(5, 4, 16, torch.float32), random_state(5, 4, 16, torch.float32)
    expected = kernel.merge_states(*a, *b)
    wide = torch.full((5, 6, 20), torch.nan)
    wide[:, 1:5, :16] = a[0]
    room = torch.zeros(4, 5, 16).transpose(0, 1)
    out, lse = kernel.merge_states(wide[:, 1:5, :16], a[1], *b, out=room)
    assert out is room and torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


@pytest.mark.parametrize(
    "change,message",
    [
        ({"out_a": torch.zeros(2, 3, 4).double()}, "out_a must be float32, float16 or bfloat16"),
        ({"out_b": torch.zeros(2, 3, 4).half()}, "out_b must be Float, got Half"),
        ({"out_b": torch.zeros(2, 3, 5)}, "out_b must have size 4 in dimension 2, got 5"),
        ({"lse_a": torch.zeros(3, 2).T}, "lse_a must be contiguous"),
        ({"lse_b": torch.zeros(2, 3).half()}, "lse_b must be Float, got Half"),
        ({"lse_b": torch.zeros(2, 4)}, "lse_b must have size 3 in dimension 1, got 4"),
        ({"out": torch.zeros(2, 3, 8)[:, :, ::2]}, "out must be contiguous in its last dimension"),
        ({"out_lse": torch.zeros(2)}, "out_lse must have 2 dimensions, got 1"),
    ],
)
def test_merge_states_of_a_bad_argument_raises_with_its_name(kernel, change, message):
    arguments = {"out_a": torch.zeros(2, 3, 4), "out_b": torch.zeros(2, 3, 4)}
    arguments |= {"lse_a": torch.zeros(2, 3), "lse_b": torch.zeros(2, 3)}
    arguments |= {"out": torch.zeros(2, 3, 4), "out_lse": torch.zeros(2, 3)}
    with pytest.raises(RuntimeError, match=message):
        kernel.merge_states(**(arguments | change))
