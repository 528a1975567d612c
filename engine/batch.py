"""A scheduler's step as the tensors that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

from .scheduler import Step


@dataclass(frozen=True)
class Batch:
    """T tokens of S sequences, one sequence after another, with no padding between them.

    tokens, positions, slot_mapping: int64 [T]; slot = block * block_size + offset. block_tables: int32
    [S, longest table], padded with 0. seq_lens: int32 [S], tokens in the cache after this step.
    query_start_loc: int32 [S + 1], where each sequence's tokens begin. sample_rows: int64, the rows of T
    whose logits are wanted.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    sample_rows: torch.Tensor


def build_batch(step: Step, block_size: int) -> Batch:
    """Lay out the chunks of a step that has at least one."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for chunk in step.chunks:
        blocks = chunk.sequence.blocks
        tokens += chunk.sequence.tokens[chunk.start : chunk.end]
        positions += range(chunk.start, chunk.end)
        slots += [
            blocks[p // block_size] * block_size + p % block_size for p in range(chunk.start, chunk.end)
        ]
    starts = list(accumulate((chunk.end - chunk.start for chunk in step.chunks), initial=0))
    widest = max(len(chunk.sequence.blocks) for chunk in step.chunks)
    tables = [chunk.sequence.blocks + [0] * (widest - len(chunk.sequence.blocks)) for chunk in step.chunks]
    return Batch(
        tokens=torch.tensor(tokens),
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        block_tables=torch.tensor(tables, dtype=torch.int32),
        seq_lens=torch.tensor([chunk.end for chunk in step.chunks], dtype=torch.int32),
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        sample_rows=torch.tensor(
            [end - 1 for chunk, end in zip(step.chunks, starts[1:], strict=True) if chunk.samples],
            dtype=torch.int64,
        ),
    )
