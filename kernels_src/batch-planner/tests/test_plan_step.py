"""A whole step in one call, against a plain Python one that takes a token at a time."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import planner_reference as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

DTYPES = {
    "tokens": np.int64,
    "positions": np.int64,
    "slot_mapping": np.int64,
    "block_tables": np.int32,
    "seq_lens": np.int32,
    "query_start_loc": np.int32,
    "sample_rows": np.int64,
}


@st.composite
def steps(draw: st.DrawFn) -> dict:
    """Sequences with prefixes in the cache, shuffled and shared blocks, some more to come, and a budget."""
    block_size = draw(st.sampled_from([1, 2, 3, 16, 256]))
    lengths = draw(st.lists(st.integers(0, 40), max_size=6))
    pool = st.integers(0, 9)  # few blocks: sequences share them, as with a common prefix
    tables = []
    for length in lengths:
        needed = -(-length // block_size)
        tables.append(draw(st.lists(pool, min_size=needed, max_size=needed + 2)))
    widest = max((-(-length // block_size) for length in lengths), default=0)
    return {
        "seq_lens": lengths,
        "query_lens": [draw(st.integers(0, length)) for length in lengths],
        "block_tables": tables,
        "block_size": block_size,
        "max_blocks": draw(st.none() | st.integers(widest, widest + 3)),
        "tokens": [draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n + 2)) for n in lengths],
        "token_budget": draw(st.none() | st.integers(0, 100)),
    }


def as_lists(plan) -> reference.Plan:
    for name, array in plan._asdict().items():
        assert array.dtype == DTYPES[name], name
        assert array.flags.c_contiguous, name
    return reference.Plan(*(array.tolist() for array in plan))


@given(steps())
def test_plan_step_of_any_step_equals_the_reference(kernel: ModuleType, step: dict) -> None:
    assert as_lists(kernel.plan_step(**step)) == reference.plan_step(**step)


@given(steps(), st.sampled_from([np.int64, np.int32, np.uint16]))
def test_plan_step_of_arrays_equals_that_of_lists(kernel: ModuleType, step: dict, dtype: type) -> None:
    width = max(map(len, step["block_tables"]), default=0)
    table = np.full((len(step["seq_lens"]), 2 * width), 7, dtype)[:, ::2]  # strided rows
    for row, blocks in zip(table, step["block_tables"]):
        row[: len(blocks)] = blocks
    arrays = {
        **step,
        "seq_lens": np.array(step["seq_lens"], dtype),
        "query_lens": np.array(step["query_lens"], dtype),
        "block_tables": table,
        "tokens": [np.array(tokens, np.int64) for tokens in step["tokens"]],
    }
    assert as_lists(kernel.plan_step(**arrays)) == as_lists(kernel.plan_step(**step))


@given(steps())
def test_plan_step_never_hands_out_a_negative_slot_or_a_token_over_budget(
    kernel: ModuleType, step: dict
) -> None:
    plan = kernel.plan_step(**step)
    assert (plan.slot_mapping >= 0).all()
    assert step["token_budget"] is None or len(plan.positions) <= step["token_budget"]


def test_plan_step_in_chunks_covers_every_token_once(kernel: ModuleType) -> None:
    tokens = list(range(100, 137))
    seen, computed = [], 0
    while computed < len(tokens):
        plan = kernel.plan_step(
            [len(tokens)], [len(tokens) - computed], [[4, 0, 2]], 16, tokens=[tokens], token_budget=10
        )
        computed = int(plan.seq_lens[0])
        assert list(plan.sample_rows) == ([len(plan.tokens) - 1] if computed == len(tokens) else [])
        seen += zip(plan.tokens.tolist(), plan.slot_mapping.tolist())
    slots = [*range(64, 80), *range(0, 16), *range(32, 37)]
    assert seen == list(zip(tokens, slots))


def test_plan_step_without_sequences_is_an_empty_step(kernel: ModuleType) -> None:
    plan = kernel.plan_step([], [], [], 16)
    assert plan.tokens is None
    assert plan.block_tables.shape == (0, 0)
    assert plan.query_start_loc.tolist() == [0]


def test_plan_step_without_tokens_samples_what_the_budget_did_not_cut(kernel: ModuleType) -> None:
    plan = kernel.plan_step([3, 5, 4], [1, 5, 4], [[0], [1], [2]], 8, token_budget=6)
    assert (plan.tokens, plan.sample_rows.tolist(), plan.seq_lens.tolist()) == (None, [0, 5], [3, 5, 0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_lens": [4]}, ValueError, "sequence 0 wants 4 of its 3 tokens"),
        ({"query_lens": [-1]}, ValueError, "sequence 0 wants -1 of its 3 tokens"),
        ({"seq_lens": [2**31], "query_lens": [0]}, ValueError, "seq_len < 2\\^31"),
        ({"query_lens": [1, 1]}, ValueError, "1 seq_lens and 2 query_lens"),
        ({"block_tables": [[0]]}, ValueError, "sequence 0 needs 2 blocks and its block table has 1"),
        ({"block_tables": [[0, -1]]}, ValueError, "sequence 0 has block -1"),
        ({"block_tables": [[0, 2**31]]}, ValueError, "sequence 0 has block 2147483648"),
        ({"block_tables": [[0, 1], [2]]}, ValueError, "one entry per sequence"),
        ({"block_tables": [[0, 1.0]]}, TypeError, "block_tables' entries: expected an integer"),
        ({"block_tables": np.zeros((1, 2))}, TypeError, "block_tables' entries: expected integers"),
        ({"block_tables": None}, TypeError, "block_tables: expected a sequence"),
        ({"block_size": 0}, ValueError, "block_size is 0"),
        ({"block_size": 2**31}, ValueError, "block_size is 2147483648"),
        ({"block_size": "2"}, TypeError, "block_size: expected an integer"),
        ({"max_blocks": 1}, ValueError, "needs 2 blocks, max_blocks is 1"),
        ({"token_budget": -1}, ValueError, "token_budget is -1"),
        ({"tokens": [[5, 6]]}, ValueError, "sequence 0 has 2 tokens and a length of 3"),
        ({"tokens": [[5, 6, 7], [8]]}, ValueError, "one entry per sequence"),
        ({"seq_lens": np.array([3], np.uint64)}, TypeError, "no uint64"),
        ({"seq_lens": [2**64]}, OverflowError, "too big"),
    ],
)
def test_plan_step_of_what_cannot_be_says_what_is_wrong(
    kernel: ModuleType, change: dict, error: type, message: str
) -> None:
    step = {"seq_lens": [3], "query_lens": [1], "block_tables": [[0, 1]], "block_size": 2}
    kernel.plan_step(**step)
    with pytest.raises(error, match=message):
        kernel.plan_step(**{**step, **change})


def test_plan_step_of_a_list_that_shrinks_while_it_is_read_raises(kernel: ModuleType) -> None:
    class Shrinks:
        def __index__(self) -> int:
            blocks.clear()
            return 3

    blocks: list = [Shrinks(), *range(1000)]
    with pytest.raises(IndexError, match="got shorter"):
        kernel.plan_step([1001], [1], [blocks], 1)
