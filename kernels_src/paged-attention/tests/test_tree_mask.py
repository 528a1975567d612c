"""`attend` of draft trees: against float64, against the same lines decoded plainly, and what is refused."""

from __future__ import annotations

import attention_reference as reference
import pytest
import torch
from test_attend import MIXED, TOLERANCE, assert_close, check, classic, make_step

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


def pack(seen):
    """Bits [rows, 32 * words] as int32 [rows, words], the least significant first."""
    words = seen.view(len(seen), -1, 32).long() << torch.arange(32)
    return words.sum(-1).to(torch.int64).bitwise_and(0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def random_mask(seed, tokens, words):
    """Any bits at all: tokens that do not see themselves, or nothing, among them."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    dense = torch.rand(tokens, 1, generator=generator)
    return pack(torch.rand(tokens, 32 * words, generator=generator) < dense)


def tree_mask(step, parents, words):
    """The mask of sequences that each end in the tree of `parents` (-1: what follows the token before it)."""
    starts = step["query_start_loc"].tolist()
    seen = torch.ones(starts[-1], 32 * words, dtype=torch.bool)
    for end, nodes in zip(starts[1:], parents, strict=True):
        for node, parent in enumerate(nodes):
            row, own = end - len(nodes) + node, 32 * words - len(nodes)
            seen[row, own:] = seen[end - len(nodes) + parent, own:] if parent >= 0 else False
            seen[row, own + node] = True
    return pack(seen)


@pytest.mark.parametrize("words", [1, 2, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attend_with_any_bits_over_a_mixed_step_is_the_reference(kernel, dtype, words):
    step = make_step(words, [*MIXED, (9, 90), (2, 70)], dtype=dtype, head_size=36 + 28 * (words % 2))
    mask = random_mask(words, len(step["query"]), words)
    check(kernel, step, tree_mask=mask)
    check(kernel, step, tree_mask=torch.zeros_like(mask))


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2), (5, 1), (1, 1)])
@pytest.mark.parametrize("block_size", [1, 16, 128])
def test_attend_of_a_tree_with_each_grouping_of_heads_is_the_reference(kernel, heads, kv_heads, block_size):
    lens = [(1, 40), (9, 52), (12, 30), (1, 1)]
    step = make_step(heads, lens, heads=heads, kv_heads=kv_heads, block_size=block_size, head_size=32)
    parents = [[], [-1, 0, 0, 1, 1, -1, 5], [-1, 0, 1, 1, 0, 2], [-1]]
    check(kernel, step, tree_mask=tree_mask(step, parents, 1))


@pytest.mark.parametrize("window", [None, 1, 3, 20, 40, 1000])
@pytest.mark.parametrize(
    "rest", [{}, {"softcap": 3.0, "sinks": SLOPES}, {"alibi_slopes": SLOPES}], ids="-".join
)
def test_attend_of_a_mask_with_other_options_is_the_reference(kernel, window, rest):
    step = make_step(11, [(1, 37), (9, 70), (7, 7), (3, 45)], head_size=32)
    for words in (1, 2):
        mask = random_mask(words, len(step["query"]), words)
        check(kernel, step, tree_mask=mask, window=window, **rest)


def test_attend_with_a_mask_of_ones_gives_the_bits_of_attend_without_one(kernel):
    step = make_step(12, MIXED, dtype=torch.bfloat16)
    ones = torch.full((len(step["query"]), 3), -1, dtype=torch.int32)
    for options in ({}, {"window": 5}, {"alibi_slopes": SLOPES}):
        assert torch.equal(kernel.attend(**step, **options), kernel.attend(**step, **options, tree_mask=ones))


@pytest.mark.parametrize("window", [None, 4])
def test_a_node_of_a_tree_gets_what_it_gets_at_the_end_of_its_own_line(kernel, window):
    step = make_step(13, [(7, 41)], head_size=32, block_size=1)
    parents = [-1, 0, 0, 1, -1, 4, 3]
    options = {"window": window, "alibi_slopes": SLOPES}
    out = kernel.attend(**step, **options, tree_mask=tree_mask(step, [parents], 1))
    table = step["block_tables"][0].tolist()
    for node, parent in enumerate(parents):
        line = [node]
        while parent >= 0:
            line, parent = [parent, *line], parents[parent]
        blocks = table[:34] + [table[34 + each] for each in line]
        alone = step | {
            "query": step["query"][node : node + 1],
            "block_tables": torch.tensor([blocks], dtype=torch.int32),
            "seq_lens": torch.tensor([len(blocks)], dtype=torch.int32),
            "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
        }
        torch.testing.assert_close(
            out[node : node + 1], kernel.attend(**alone, **options), rtol=1e-5, atol=1e-5
        )


def test_attend_of_a_tree_gives_the_same_bits_alone_and_in_any_batch(kernel):
    step = make_step(14, [(1, 37), (12, 60), (1, 50)], head_size=32)
    mask = random_mask(3, 14, 2)
    together = kernel.attend(**step, tree_mask=mask)
    assert torch.equal(kernel.attend(**step, tree_mask=mask), together)
    alone = step | {
        "query": step["query"][1:13],
        "block_tables": step["block_tables"][1:2],
        "seq_lens": step["seq_lens"][1:2],
        "query_start_loc": torch.tensor([0, 12], dtype=torch.int32),
    }
    assert torch.equal(kernel.attend(**alone, tree_mask=mask[1:13]), together[1:13])


def test_a_token_that_a_mask_hides_is_not_read(kernel):
    step = make_step(15, [(4, 20)])
    mask = tree_mask(step, [[-1, -1, -1]], 1)
    expected = kernel.attend(**step, tree_mask=mask)
    for name in ("key_cache", "value_cache"):
        step[name][step["block_tables"][0, 1], 1] = torch.nan  # the tree's first node, which only itself sees
    out = kernel.attend(**step, tree_mask=mask)
    assert torch.equal(out[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attend_of_a_tree_over_either_layout_is_the_reference(kernel, dtype):
    step = make_step(16, MIXED, dtype=dtype)
    mask = random_mask(16, len(step["query"]), 2)
    expected, _ = reference.attend(**step, tree_mask=mask)
    assert_close(kernel.attend(**step, tree_mask=mask), expected, dtype)
    step["key_cache"], step["value_cache"] = classic(step["key_cache"], step["value_cache"])
    assert_close(kernel.attend(**step, tree_mask=mask), expected, dtype)


@pytest.mark.parametrize("window", [None, 1, 4, 40])
def test_attend_of_a_chunk_that_is_longer_than_its_mask_is_the_reference(cpu_kernel, window):
    step = make_step(18, [(50, 60), (40, 90), (33, 33)], head_size=32)
    check(cpu_kernel, step, tree_mask=random_mask(18, len(step["query"]), 1), window=window)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attend_of_a_tree_after_a_long_context_is_the_reference(cpu_kernel, dtype):
    step = make_step(17, [(70, 2080), (1, 1500), (33, 1030)], dtype=dtype, head_size=32)
    mask = random_mask(17, len(step["query"]), 3)
    check(cpu_kernel, step, tree_mask=mask)
    check(cpu_kernel, step, tree_mask=mask, window=600)


@pytest.mark.parametrize(
    "mask,message",
    [
        (torch.zeros(2, 1), "tree_mask must be Int, got Float"),
        (torch.zeros(2, dtype=torch.int32), "tree_mask must have 2 dimensions, got 1"),
        (torch.zeros(1, 1, dtype=torch.int32), "tree_mask must have size 2 in dimension 0, got 1"),
        (torch.zeros(2, 0, dtype=torch.int32), "tree_mask must have a word of 32 tokens or more"),
        (torch.zeros(2, 4, dtype=torch.int32)[:, ::2], "tree_mask must be contiguous in its last dimension"),
    ],
)
def test_attend_of_a_bad_tree_mask_raises_with_its_name(kernel, mask, message):
    with pytest.raises(RuntimeError, match=message):
        kernel.attend(**make_step(0, [(2, 20)]), tree_mask=mask)


def test_attend_with_a_tree_mask_that_is_not_causal_raises(kernel):
    mask = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="tree_mask needs causal=True"):
        kernel.attend(**make_step(0, [(2, 20)]), tree_mask=mask, causal=False)


def test_attend_of_a_tree_under_torch_compile_is_attend(cpu_kernel):
    step = make_step(0, [(3, 20)])
    mask = tree_mask(step, [[-1, 0, 0]], 1)
    compiled = torch.compile(
        lambda: cpu_kernel.attend(**step, tree_mask=mask) + 1, backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(), cpu_kernel.attend(**step, tree_mask=mask) + 1)
