"""The layout of one step of continuous batching, and the identity of KV-cache blocks, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._ops import ops

__all__ = ["StepPlan", "hash_blocks", "plan_step"]

_ROOT = bytes(16)


class StepPlan(NamedTuple):
    """T tokens of S sequences, one sequence after another, with no padding between them.

    tokens: int64 [T], None where plan_step got none. positions, slot_mapping: int64 [T]; slot = block *
    block_size + offset. block_tables: int32 [S, max_blocks], padded with 0. seq_lens: int32 [S], tokens in the
    cache after the step. query_start_loc: int32 [S + 1], where each sequence's tokens begin. sample_rows: int64,
    the rows of T after which a sequence has nothing left to compute.
    """

    tokens: np.ndarray | None
    positions: np.ndarray
    slot_mapping: np.ndarray
    block_tables: np.ndarray
    seq_lens: np.ndarray
    query_start_loc: np.ndarray
    sample_rows: np.ndarray


def plan_step(
    seq_lens: Sequence[int] | np.ndarray,
    query_lens: Sequence[int] | np.ndarray,
    block_tables: Sequence[Sequence[int]] | np.ndarray,
    block_size: int,
    max_blocks: int | None = None,
    *,
    tokens: Sequence[Sequence[int]] | None = None,
    token_budget: int | None = None,
) -> StepPlan:
    """Lay out one step.

    Args:
        seq_lens: tokens of each sequence, those already in the cache and those to compute.
        query_lens: how many of them, the last ones, are to be computed.
        block_tables: each sequence's blocks in order, as lists or as the rows of an integer array; what lies
            beyond the tokens of this step is not read.
        block_size: tokens in a block.
        max_blocks: width of the block tables given back; None takes what the longest sequence needs.
        tokens: each sequence's token ids from position 0 on, to be gathered into the step. A sequence whose list
            is longer than its seq_len has more to compute and gets no row in sample_rows.
        token_budget: the most tokens in the step, given out first come first served: a sequence may be cut
            short or get nothing. None: no limit.

    Raises:
        ValueError: lengths that contradict each other, a block table that is too short, a negative block.
        TypeError: something that is not an integer.
    """
    return StepPlan._make(
        ops.plan_step(seq_lens, query_lens, block_tables, block_size, max_blocks, tokens, token_budget)
    )


def hash_blocks(
    token_ids: Sequence[int] | np.ndarray, block_size: int, seed: int = 0, *, parent: bytes = _ROOT
) -> list[bytes]:
    """One hash of 16 bytes for each full block of tokens, of its tokens and all before them.

    Two equal hashes under one seed mean equal tokens from the first on, but for a chance of 2^-128 a pair. The
    hash is SipHash-2-4-128 with the seed as its key: with a secret seed (`secrets.randbits(128)`) nobody can look
    for tokens that collide, so it is safe to share blocks between users who do not trust each other.

    Args:
        token_ids: any integers of 64 bits; those of an incomplete last block are left out.
        block_size: tokens in a block.
        seed: 0 <= seed < 2**128. Hashes of different seeds have nothing in common.
        parent: the hash of the block before the first, to go on where an earlier call ended.

    Raises:
        ValueError, OverflowError, TypeError: an argument out of its range, or not an integer.
    """
    return ops.hash_blocks(token_ids, block_size, seed.to_bytes(16, "little"), parent)
