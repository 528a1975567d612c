"""What each step computes. Pure: no tensors, no clock.

Prefill and decode are one thing here: a sequence has tokens whose keys and values are in the cache and
tokens still to compute, and each step hands out one budget of tokens over the sequences in the order of their
keys (priority, then arrival). A long prompt is thereby cut into chunks that share steps with other sequences'
decodes.

- *Prefix sharing*: what is admitted starts behind the longest beginning that the cache holds already.
- *Preemption*: when blocks or places run out, the sequence with the largest key gives all of its own back. Its
  tokens are computed again later, or, with host blocks to spare, copied out and in.
- *Speculation*: what a step has room for beside everybody's chunks goes to drafts, so that they cost nobody's turn.
- *Copy on write*: branches of a request share even the last, half-full block; who writes to it first copies it.

What a step moves is done in this order: swap_out, swap_in, copies, then the chunks are computed.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field, replace

from .block_pool import BlockPool, blocks_for, extend_digests
from .counters import Counters
from .draft import NOTHING, Draft
from .sequence import Sequence

Move = tuple[int, int]
"""A block to copy from, and one to copy to."""


@dataclass(frozen=True)
class Chunk:
    """Compute `sequence.tokens[start:end]`, and after them the tokens of `draft`.

    `samples`: the last token and every node of the draft yield a next token.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool
    draft: Draft = NOTHING


@dataclass(frozen=True)
class Preemption:
    """A sequence that lost its blocks, and why."""

    sequence: Sequence
    reason: str


@dataclass
class Step:
    """The chunks to compute together, in order of their keys, who was preempted to make room, and what moves.

    budget: how many tokens it has room for still.
    """

    chunks: list[Chunk] = field(default_factory=list)
    budget: int = 0
    preempted: list[Preemption] = field(default_factory=list)
    swap_out: list[Move] = field(default_factory=list)
    swap_in: list[Move] = field(default_factory=list)
    copies: list[Move] = field(default_factory=list)


class Scheduler:
    """Shares `token_budget` tokens a step among at most `max_sequences` running sequences."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        token_budget: int,
        max_sequences: int,
        *,
        host_blocks: int = 0,
        share_prefixes: bool = True,
    ) -> None:
        """`host_blocks`: room in host memory for the blocks of preempted sequences; 0: compute them again."""
        self.pool = pool
        self.block_size = block_size
        self.token_budget = token_budget
        self.max_sequences = max_sequences
        self.share_prefixes = share_prefixes
        self.counters = Counters()
        # Both in the order of their keys.
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._host = BlockPool(host_blocks)
        self._host_leaving: list[int] = []  # read by the step under way, so not yet to be written over
        self._steps = 0

    @property
    def capacity(self) -> int:
        """The most tokens a sequence can hold in the cache."""
        return self.pool.num_blocks * self.block_size

    @property
    def waste(self) -> float:
        """The share of places in held blocks that hold no token."""
        held = {
            block: min(self.block_size, max(0, s.computed - i * self.block_size))
            for s in self.running
            for i, block in enumerate(s.blocks)
        }
        return 1 - sum(held.values()) / (len(held) * self.block_size) if held else 0.0

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
        if sequence.branches > self.max_sequences:
            raise ValueError(f"{sequence.branches} branches do not fit into {self.max_sequences} places")
        sequence.arrival = self._steps
        self.counters.prompt_tokens += sequence.prompt_length
        insort(self.waiting, sequence, key=_key)

    def end(self, sequence: Sequence, reason: str) -> None:
        """Finish a sequence between two steps, for a reason that is not in its tokens; its blocks are free."""
        sequence.ended = reason
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._release(sequence)
        self._host.release(sequence.host_blocks)
        sequence.host_blocks = []

    def schedule(self) -> Step:
        """Choose the next step's chunks and allocate their blocks; empty only when nothing is queued."""
        self._steps += 1
        step = Step(budget=self.token_budget)
        admitting = True
        place = 0  # in the order of keys: everything before it in `running` has had its turn
        while step.budget:
            sequence = self._next(place, admitting)
            if sequence is None:
                break
            waits = place == len(self.running) or self.running[place] is not sequence
            if waits and not self._admit(sequence, step):
                admitting = False  # nobody behind may overtake it
            elif waits or self._continue(sequence, step):
                place += 1
        self._add_drafts(step)
        return step

    def complete(self, step: Step, sampled: Sized[Sized[int]]) -> list[Sequence]:
        """Record a computed step.

        `sampled` has, for each chunk that samples, the tokens that follow: one, or with a draft the accepted
        ones and one more; for the first of a request with branches, one for each branch. The accepted ones'
        keys have to be where the tokens' own would be. None at all: what was computed is worth nothing, so the sequence
        ends with the reason "error" and its blocks are shared with nobody who comes later.

        Returns the sequences that finished; their blocks are free again.
        """
        self._host.release(self._host_leaving)
        self._host_leaving = []
        finished = []
        tokens = iter(sampled)
        for chunk in step.chunks:
            sequence = chunk.sequence
            following = next(tokens) if chunk.samples else ()
            if sequence.finish_reason:  # while the step was computed: nobody wants what it found
                continue
            sequence.computed = chunk.end
            if not chunk.samples:
                self._seal(sequence)
                continue
            line = [sequence]
            if not following:
                sequence.ended = "error"
                self.pool.forget(sequence.digests)
                finished.append(sequence)
                continue
            if sequence.branches > 1:
                line += self._branch(sequence, following[1:])
                following = following[:1]
            taken = 0
            for token in following:
                sequence.tokens.append(token)
                taken += 1
                if sequence.finish_reason:
                    break
            self._count(chunk, taken, len(line))
            sequence.computed = len(sequence.tokens) - 1  # accepted drafts are in the cache as well
            if chunk.draft is not NOTHING:
                needed = blocks_for(sequence.computed, self.block_size)
                self.pool.release(sequence.blocks[needed:])  # what rejected drafts lay in
                del sequence.blocks[needed:]
            sequence.draft = NOTHING
            for each in line:
                self._seal(each)
            finished += [each for each in line if each.finish_reason]
        for sequence in finished:
            self.running.remove(sequence)
            self._release(sequence)
        return finished

    def settle(self, step: Step, sampled: Sized[int]) -> None:
        """Say what was drawn in a step that was recorded with stand-ins, while another may have been scheduled.

        `sampled` has a token for each chunk that samples. A sequence that its token ends gives its blocks back,
        and what a later step computes for it is thrown away.
        """
        chunks = (chunk for chunk in step.chunks if chunk.samples)
        for chunk, token in zip(chunks, sampled, strict=True):
            sequence = chunk.sequence
            if sequence.ended:
                continue
            at_length = sequence.finish_reason  # `complete` knew that
            sequence.tokens[chunk.end] = token
            if sequence.finish_reason and not at_length:
                self.end(sequence, "stop")

    # -- one sequence's turn

    def _next(self, place: int, admitting: bool) -> Sequence | None:
        """Whose turn it is: the running one at `place`, or a waiting one whose key is smaller."""
        running = self.running[place] if place < len(self.running) else None
        waiting = self.waiting[0] if admitting and self.waiting else None
        if running and waiting:
            return min(running, waiting, key=_key)
        return running or waiting

    def _admit(self, sequence: Sequence, step: Step) -> bool:
        if any(preemption.sequence is sequence for preemption in step.preempted):
            return False
        while self._places() + sequence.branches > self.max_sequences:
            if not self._preempt_after(sequence, step):
                return False
        if not sequence.host_blocks:
            self._take_prefix(sequence)
        end = min(len(sequence.tokens), sequence.computed + step.budget)
        if not self._reserve(sequence, end, step):
            if not sequence.host_blocks:
                self._release(sequence)
            return False
        if sequence.host_blocks:
            step.swap_in += zip(sequence.host_blocks, sequence.blocks, strict=False)
            self._host_leaving += sequence.host_blocks
            sequence.host_blocks = []
        elif sequence.cached is None:  # later it finds what it computed itself
            sequence.cached = sequence.computed
            self.counters.prefix_hit_tokens += sequence.cached
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_key)
        self._add_chunk(sequence, end, step)
        return True

    def _continue(self, sequence: Sequence, step: Step) -> bool:
        """A running sequence's turn; False if it was the one to make room."""
        end = min(len(sequence.tokens), sequence.computed + step.budget)
        if not self._reserve(sequence, end, step):
            self._preempt(sequence, sequence, step)
            return False
        self._add_chunk(sequence, end, step)
        return True

    def _add_chunk(self, sequence: Sequence, end: int, step: Step) -> None:
        step.budget -= end - sequence.computed
        step.chunks.append(Chunk(sequence, sequence.computed, end, end == len(sequence.tokens)))

    def _add_drafts(self, step: Step) -> None:
        """Share the budget that is left among the drafts, as far as blocks are free that nobody else needs."""
        guessing = [
            place
            for place, chunk in enumerate(step.chunks)
            if chunk.samples and chunk.sequence.draft and chunk.sequence.branches == 1
        ]
        for done, place in enumerate(guessing):
            chunk, sequence = step.chunks[place], step.chunks[place].sequence
            left = sequence.prompt_length + sequence.max_tokens - len(sequence.tokens) - 1
            room = (len(sequence.blocks) + self.pool.available) * self.block_size - chunk.end
            guess = sequence.draft.cut(min(step.budget // (len(guessing) - done), room), left)
            missing = blocks_for(chunk.end + len(guess), self.block_size) - len(sequence.blocks)
            sequence.blocks += self.pool.allocate(max(0, missing))
            step.budget -= len(guess)
            step.chunks[place] = replace(chunk, draft=guess)

    def _count(self, chunk: Chunk, tokens: int, lines: int) -> None:
        self.counters.generated_tokens += tokens + lines - 1
        self.counters.turns += lines
        if chunk.draft is NOTHING:
            return
        self.counters.guesses += bool(chunk.draft)
        self.counters.accepted_tokens += tokens - 1

    # -- blocks

    def _reserve(self, sequence: Sequence, tokens: int, step: Step) -> bool:
        """Blocks for the first `tokens` tokens, taken from those with larger keys if need be."""
        last = sequence.computed // self.block_size  # the block that is written to next
        copied = last < len(sequence.blocks) and self.pool.shared(sequence.blocks[last])
        missing = max(0, blocks_for(tokens, self.block_size) - len(sequence.blocks))
        while missing + copied > self.pool.available:
            if not self._preempt_after(sequence, step):
                return False
            copied = copied and self.pool.shared(sequence.blocks[last])
        if copied:
            [own] = self.pool.allocate(1)
            step.copies.append((sequence.blocks[last], own))
            self.pool.release([sequence.blocks[last]])
            sequence.blocks[last] = own
        if missing:
            sequence.blocks += self.pool.allocate(missing)
        return True

    def _preempt_after(self, sequence: Sequence, step: Step) -> bool:
        """Preempt the running sequence with the largest key, if it is larger than that of `sequence`."""
        if not self.running or _key(self.running[-1]) <= _key(sequence):
            return False
        self._preempt(self.running[-1], sequence, step)
        return True

    def _preempt(self, sequence: Sequence, for_whom: Sequence, step: Step) -> None:
        self.running.remove(sequence)
        held = blocks_for(sequence.computed, self.block_size)
        swaps = 0 < held <= self._host.available
        again = (
            f"will copy them in again from host memory: {self.pool.num_blocks} blocks"
            if swaps
            else f"will compute {sequence.computed} tokens again: {self.pool.num_blocks} blocks"
        )
        reason = (
            f"request {sequence.id} gave up {len(sequence.blocks)} KV blocks for request {for_whom.id} and "
            f"{again} and {self.max_sequences} places are too few for all; raise num_blocks or max_sequences"
        )
        if swaps:
            sequence.host_blocks = self._host.allocate(held)
            step.swap_out += zip(sequence.blocks, sequence.host_blocks, strict=False)
        computed = sequence.computed
        self._release(sequence)
        if swaps:
            sequence.computed = computed
        insort(self.waiting, sequence, key=_key)
        self.counters.preemptions += 1
        step.preempted.append(Preemption(sequence, reason))

    def _take_prefix(self, sequence: Sequence) -> None:
        """Share the blocks of what the cache holds already; at least one token is left to compute."""
        if not self.share_prefixes:
            return
        extend_digests(sequence.digests, sequence.tokens, self.block_size)
        usable = (len(sequence.tokens) - 1) // self.block_size
        sequence.blocks = self.pool.find(sequence.digests[:usable])
        self.pool.share(sequence.blocks)
        sequence.sealed = len(sequence.blocks)
        sequence.computed = len(sequence.blocks) * self.block_size

    def _seal(self, sequence: Sequence) -> None:
        full = sequence.computed // self.block_size
        if not self.share_prefixes or sequence.sealed >= full:
            return
        extend_digests(sequence.digests, sequence.tokens[: full * self.block_size], self.block_size)
        for index in range(sequence.sealed, full):
            self.pool.seal(sequence.blocks[index], sequence.digests[index])
        sequence.sealed = full

    def _branch(self, sequence: Sequence, tokens: Sized[int]) -> list[Sequence]:
        """The other continuations of a prompt that was just computed; they hold its blocks too."""
        sequence.branches = 1
        made = [sequence.fork(branch, token) for branch, token in enumerate(tokens, 1)]
        for each in made:
            each.computed, each.sealed = sequence.computed, sequence.sealed
            each.blocks, each.digests = list(sequence.blocks), list(sequence.digests)
            self.pool.share(each.blocks)
            insort(self.running, each, key=_key)
        return made

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.draft = [], NOTHING  # a draft's chances take room, too
        sequence.computed = sequence.sealed = 0

    def _places(self) -> int:
        return sum(sequence.branches for sequence in self.running)


def _key(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.key
