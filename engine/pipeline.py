"""Steps that overlap: the next one is planned while the device computes the one before.

The scheduler is told that each line of the step under way got a token, by a stand-in, and plans on. Which token it
is, only the device knows yet: it puts it into the next step's input itself. The host reads it when the next step has
been handed over, and so finds out one step late that a line has ended. What was computed for that line meanwhile is
thrown away; it lies in blocks that somebody else may write to from the step after on, and steps are computed in order.

A line that the next token cannot be drawn for without knowing the last one is waited for: where a guide or penalties
read what was said, and where a prompt branches. An engine that speculates waits for every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

import torch

from .batch import Batch
from .device import put
from .model import KVCache
from .sampler import Choice, Drawn, Draws, draw
from .scheduler import Move, Step
from .speculation.verify import Walk

Line = TypeVar("Line")


@dataclass
class Flight(Generic[Line]):
    """A step that was handed to the device, and for each chunk that samples the lines that it makes longer.

    logits [rows, vocabulary]. drawn: the device was told to draw its tokens, and the next step may be planned.
    """

    step: Step
    walks: Sequence[Sequence[tuple[Line, Walk]]]
    logits: torch.Tensor
    drawn: bool = field(default=False, init=False)
    _drawn: Drawn | None = field(default=None, init=False)

    @cached_property
    def flat(self) -> list[tuple[Line, Walk]]:
        """The lines of all chunks, in the order of their logits."""
        return [each for group in self.walks for each in group]

    @property
    def may_go_on(self) -> bool:
        """Whether the next step can be planned and its tokens be drawn before those of this one are known."""
        return len(self.flat) == len(self.walks) and not any(
            needs_last_token(walk.draws) for _, walk in self.flat
        )

    @property
    def stand_ins(self) -> list[list[int]]:
        """For each chunk that samples a number below 0, from which `fill` knows whose token it stands for."""
        return [[-1 - row] for row in range(len(self.walks))]

    def draw(self) -> None:
        """Have the device draw each line's token."""
        self.drawn = True
        if self.flat:
            self._drawn = draw(self.logits, [walk.draws for _, walk in self.flat])
        self.logits = self.logits.new_empty(0)  # they are large, and wanted no more

    def choices(self) -> list[Choice]:
        """What was drawn; waits for the device."""
        return self._drawn.choices() if self._drawn else []

    def fill(self, batch: Batch) -> Batch:
        """The next step's batch with this one's tokens for their stand-ins, without waiting for them."""
        if self._drawn is None:
            return batch
        drawn = self._drawn.tokens
        tokens = put(batch.tokens, drawn.device)
        rows = (-1 - tokens).clamp_(min=0)
        return replace(batch, tokens=torch.where(tokens < 0, drawn[rows], tokens))


def needs_last_token(draws: Draws) -> bool:
    """Whether what a line has said up to now decides how its next token is drawn."""
    params = draws.params
    return (
        draws.guide is not None
        or params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


def copy_blocks(source: KVCache, target: KVCache, moves: Sequence[Move]) -> None:
    """Copy blocks that have to be elsewhere before a step is computed; all are read before any is written."""
    if not moves:
        return
    sources, targets = (torch.tensor(blocks) for blocks in zip(*moves, strict=True))
    for from_layer, to_layer in zip(source, target, strict=True):
        for held, place in zip(from_layer, to_layer, strict=True):
            place[targets.to(place.device)] = held[sources.to(held.device)].to(place.device)
