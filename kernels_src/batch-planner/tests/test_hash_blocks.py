"""The identity of a block: its tokens and all before them, and nothing else."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import planner_reference as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

TOKENS = st.integers(-(2**63), 2**63 - 1)
SEEDS = st.integers(0, 2**128 - 1)


def test_reference_gives_the_authors_test_vectors() -> None:
    key = bytes(range(16))
    assert reference.siphash128(key, b"").hex() == "a3817f04ba25a8e66df67214c7550293"
    assert reference.siphash128(key, b"\0").hex() == "da87c1d86b99af44347659119b22fc45"


@given(
    st.lists(TOKENS, max_size=40),
    st.integers(1, 9),
    SEEDS,
    st.binary(min_size=16, max_size=16),
    st.booleans(),
)
def test_hash_blocks_of_any_tokens_equals_the_reference(
    kernel: ModuleType, tokens: list[int], block_size: int, seed: int, parent: bytes, as_array: bool
) -> None:
    given_tokens = np.array(tokens, np.int64) if as_array else tokens
    hashes = kernel.hash_blocks(given_tokens, block_size, seed, parent=parent)
    assert hashes == reference.hash_blocks(tokens, block_size, seed, parent)


@given(st.lists(TOKENS, min_size=1, max_size=40), st.integers(1, 5), st.data())
def test_hash_of_a_block_changes_with_its_own_and_earlier_tokens_only(
    kernel: ModuleType, tokens: list[int], block_size: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(tokens) - 1))
    other = [*tokens[:at], data.draw(TOKENS.filter(lambda token: token != tokens[at])), *tokens[at + 1 :]]
    before, after = (kernel.hash_blocks(t, block_size) for t in (tokens, other))
    changed = [a != b for a, b in zip(before, after)]
    assert changed == [block >= at // block_size for block in range(len(before))]


@given(st.lists(TOKENS, max_size=40), st.integers(0, 10))
def test_hash_blocks_continued_from_a_parent_equals_one_call(
    kernel: ModuleType, tokens: list[int], split: int
) -> None:
    whole = kernel.hash_blocks(tokens, 4, 5)
    head = whole[:split]
    rest = kernel.hash_blocks(tokens[len(head) * 4 :], 4, 5, **({"parent": head[-1]} if head else {}))
    assert head + rest == whole


def test_hash_blocks_of_another_seed_or_block_size_have_nothing_in_common(kernel: ModuleType) -> None:
    tokens = list(range(64))
    sets = [set(kernel.hash_blocks(tokens, 8, seed)) for seed in (0, 1, 2**127)]
    sets.append(set(kernel.hash_blocks(tokens, 4, 0)))
    assert len(set.union(*sets)) == 8 * 3 + 16


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([1], 0), ValueError),
        (([1], 1, -1), OverflowError),
        (([1], 1, 2**128), OverflowError),
        (([2**63], 1), OverflowError),
        (([1.0], 1), TypeError),
        ((np.array([1.0]), 1), TypeError),
        ((np.array([[1]]), 1), TypeError),
        ((None, 1), TypeError),
    ],
)
def test_hash_blocks_of_what_is_out_of_range_raises(
    kernel: ModuleType, arguments: tuple, error: type
) -> None:
    with pytest.raises(error):
        kernel.hash_blocks(*arguments)


def test_hash_blocks_of_a_parent_of_another_length_raises(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="parent must have 16 bytes"):
        kernel.hash_blocks([1], 1, parent=b"short")
