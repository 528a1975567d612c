"""What each step computes. Pure: no tensors, no clock.

Prefill and decode are one thing here: a sequence has tokens whose keys and values are in the cache and
tokens still to compute, and each step hands out one budget of tokens over the sequences, first come first
served. A long prompt is thereby cut into chunks that share steps with other sequences' decodes. When blocks
run out, the latest arrival gives all of its own back and computes its tokens again later (recompute
preemption).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field

from .block_pool import BlockPool, blocks_for


@dataclass(eq=False)
class Sequence:
    """One request's tokens and their place in the cache; the scheduler owns `computed` and `blocks`."""

    id: int
    tokens: list[int]
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def finish_reason(self) -> str | None:
        """ "stop" after a stop token, "length" after max_tokens, None while running."""
        generated = len(self.tokens) - self.prompt_length
        if generated and self.tokens[-1] in self.stop_tokens:
            return "stop"
        return "length" if generated >= self.max_tokens else None


@dataclass(frozen=True)
class Chunk:
    """Compute `sequence.tokens[start:end]`; `samples`: the last of them yields the next token."""

    sequence: Sequence
    start: int
    end: int
    samples: bool


@dataclass(frozen=True)
class Preemption:
    """A sequence that lost its blocks, and why."""

    sequence: Sequence
    reason: str


@dataclass(frozen=True)
class Step:
    """The chunks to compute together, in order of arrival, and who was preempted to make room."""

    chunks: tuple[Chunk, ...]
    preempted: tuple[Preemption, ...] = ()


class Scheduler:
    """Shares `token_budget` tokens a step among at most `max_sequences` running sequences."""

    def __init__(self, pool: BlockPool, block_size: int, token_budget: int, max_sequences: int) -> None:
        self.pool = pool
        self.block_size = block_size
        self.token_budget = token_budget
        self.max_sequences = max_sequences
        # Both in order of arrival, and everything running arrived before everything waiting.
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()

    @property
    def capacity(self) -> int:
        """The most tokens a sequence can hold in the cache."""
        return self.pool.num_blocks * self.block_size

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            ValueError: it is empty, or could never fit and would wait forever.
        """
        # The last generated token is never an input, so it needs no place in the cache.
        needed = sequence.prompt_length + sequence.max_tokens - 1
        if sequence.prompt_length < 1 or sequence.max_tokens < 1:
            raise ValueError("a sequence needs at least one prompt token and one token to generate")
        if needed > self.capacity:
            raise ValueError(f"{needed} tokens do not fit into a cache of {self.capacity}")
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Choose the next step's chunks and allocate their blocks; empty only when nothing is queued."""
        budget = self.token_budget
        chunks: list[Chunk] = []
        preempted: list[Preemption] = []
        for sequence in list(self.running):
            if budget == 0 or sequence not in self.running:  # preempted for an earlier one, as all after it
                break
            end = min(len(sequence.tokens), sequence.computed + budget)
            while not self._reserve(sequence, end):
                preempted.append(self._preempt_latest(for_whom=sequence))
                if preempted[-1].sequence is sequence:
                    break
            else:
                chunks.append(_chunk(sequence, end))
                budget -= end - sequence.computed
        while self.waiting and budget and not preempted and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            end = min(len(sequence.tokens), budget)
            if not self._reserve(sequence, end):
                break  # a later, shorter one must not overtake it
            self.running.append(self.waiting.popleft())
            chunks.append(_chunk(sequence, end))
            budget -= end
        return Step(tuple(chunks), tuple(preempted))

    def complete(self, step: Step, sampled: Sized[int]) -> list[Sequence]:
        """Record a computed step; `sampled` has one token for each chunk that samples, in order.

        Returns the sequences that finished; their blocks are free again.
        """
        tokens = iter(sampled)
        for chunk in step.chunks:
            chunk.sequence.computed = chunk.end
            if chunk.samples:
                chunk.sequence.tokens.append(next(tokens))
        finished = [c.sequence for c in step.chunks if c.samples and c.sequence.finish_reason]
        for sequence in finished:
            self.running.remove(sequence)
            self._release(sequence)
        return finished

    def _reserve(self, sequence: Sequence, tokens: int) -> bool:
        missing = blocks_for(tokens, self.block_size) - len(sequence.blocks)
        if missing > self.pool.available:
            return False
        sequence.blocks += self.pool.allocate(missing) if missing > 0 else []
        return True

    def _preempt_latest(self, for_whom: Sequence) -> Preemption:
        latest = self.running.pop()
        reason = (
            f"request {latest.id} gave up {len(latest.blocks)} KV blocks for request {for_whom.id} and will "
            f"compute {latest.computed} tokens again: {self.pool.num_blocks} blocks are too few for all; "
            f"raise num_blocks"
        )
        self._release(latest)
        self.waiting.appendleft(latest)
        return Preemption(latest, reason)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0


def _chunk(sequence: Sequence, end: int) -> Chunk:
    return Chunk(sequence, sequence.computed, end, samples=end == len(sequence.tokens))
