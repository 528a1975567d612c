"""A scheduler's step as the tensors that the kernels read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from .device import put
from .scheduler import Step


@dataclass(frozen=True)
class Batch:
    """T tokens of S sequences, one sequence after another, with no padding between them.

    tokens, positions, slot_mapping: int64 [T]; slot = block * block_size + offset. block_tables: int32
    [S, longest table], padded with 0. seq_lens: int32 [S], tokens in the cache after this step.
    query_start_loc: int32 [S + 1], where each sequence's tokens begin. sample_rows: int64, the rows of T
    whose logits are wanted. tree_mask: int32 [T, W], where the step has draft trees: bit b of word w says whether a
    row may see the sequence's token number w * 32 + b of its last 32 * W.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    sample_rows: torch.Tensor
    tree_mask: torch.Tensor | None = None

    def on(self, device: torch.device) -> Batch:
        """The batch on a device; itself on a CPU."""
        if device.type == "cpu":
            return self
        parts = {name: value for name, value in vars(self).items() if value is not None}
        return Batch(**{name: put(value, device) for name, value in parts.items()})


_FIELDS = tuple(field.name for field in fields(Batch) if field.name != "tree_mask")


def build_batch(step: Step, block_size: int, plan_step: Callable[..., Any]) -> Batch:
    """Lay out the chunks of a step that has at least one; a draft as if its tokens came one after another.

    `plan_step` is the planner slot's function; its answer has Batch's fields as tensors or as numpy arrays.
    """
    sequences = [chunk.sequence for chunk in step.chunks]
    plan = plan_step(
        [chunk.end + len(chunk.draft) for chunk in step.chunks],
        [chunk.end - chunk.start + len(chunk.draft) for chunk in step.chunks],
        [sequence.blocks for sequence in sequences],
        block_size,
        tokens=[
            [*chunk.sequence.tokens, *chunk.draft.tokens] if chunk.draft else chunk.sequence.tokens
            for chunk in step.chunks
        ],
    )
    return Batch(*(_tensor(getattr(plan, name)) for name in _FIELDS))


def _tensor(values: Any) -> torch.Tensor:
    """A tensor as it is; a numpy array's memory as a tensor, a third of the time `as_tensor` takes."""
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
