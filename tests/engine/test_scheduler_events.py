"""The scheduler against a cache that knows what each place holds.

Whatever arrives, is aborted, branches, is preempted or is guessed ahead: a computed token finds the keys of
exactly the tokens before it, nobody writes where another reads, no block is lost, and everybody ends.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from engine.block_pool import BlockPool, blocks_for
from engine.draft import LAST, Draft
from engine.scheduler import Chunk, Scheduler, Step
from engine.sequence import AGING_STEPS, Sequence

VOCABULARY = 50


def next_token(tokens: list[int], branch: int = 0) -> int:
    """A stand-in model: the next token is a function of all tokens before it, and of the branch."""
    return hash((*tokens, branch)) % VOCABULARY


@dataclass
class World:
    """A scheduler and the memory it manages; a place holds all tokens up to its own."""

    scheduler: Scheduler
    random: random.Random
    memory: dict[tuple[str, int], dict[int, tuple[int, ...]]] = field(default_factory=dict)
    alive: dict[tuple[int, int], Sequence] = field(default_factory=dict)
    ended: list[Sequence] = field(default_factory=list)
    wrong_drafts: float = 0.5
    overlaps: bool = False
    flight: tuple[Step, list[list[int]]] | None = None  # computed, and not yet known to the scheduler

    def move(self, step: Step) -> None:
        for kind, target, moves in (
            ("device", "host", step.swap_out),
            ("host", "device", step.swap_in),
            ("device", "device", step.copies),
        ):
            content = [(to, dict(self.memory.get((kind, source), {}))) for source, to in moves]
            self.memory.update({(target, to): held for to, held in content})

    def compute(self, chunk: Chunk) -> list[int]:
        """Write the chunk's tokens, having checked that those before it are there; the tokens that follow."""
        sequence, draft = chunk.sequence, chunk.draft
        tokens = sequence.tokens[: chunk.end]
        if tokens[-1] < 0:  # a stand-in: the device knows what was drawn
            assert self.flight is not None
            tokens[-1] = self.flight[1][-1 - tokens[-1]][0]
        assert min(tokens) >= 0
        assert len(sequence.blocks) >= blocks_for(chunk.end + len(draft), self.scheduler.block_size)
        for position in range(chunk.start):
            assert self.place(sequence, position) == tuple(tokens[: position + 1])
        for position in range(chunk.start, chunk.end):
            self.write(sequence, position, tuple(tokens[: position + 1]))
        lines: dict[int, tuple[int, ...]] = {LAST: tuple(tokens)}
        for number, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
            lines[number] = (*lines[parent], token)
            assert len(lines[number]) < sequence.prompt_length + sequence.max_tokens
            self.write(sequence, chunk.end + number, lines[number])
        if not chunk.samples:
            return []
        if sequence.branches > 1:
            return [next_token(tokens, branch) for branch in range(sequence.branches)]
        following = [next_token(tokens, self.seed(sequence, chunk.end))]
        path: list[int] = []
        while (node := draft.child(path[-1] if path else LAST, following[-1])) is not None:
            path.append(node)
            following.append(next_token([*tokens, *following], 0))
        kept = [lines[each] for each in path]
        for place, line in enumerate(kept):
            self.write(sequence, chunk.end + place, line)
        return following

    def place(self, sequence: Sequence, position: int) -> tuple[int, ...] | None:
        block, offset = divmod(position, self.scheduler.block_size)
        return self.memory.get(("device", sequence.blocks[block]), {}).get(offset)

    def write(self, sequence: Sequence, position: int, line: tuple[int, ...]) -> None:
        block, offset = divmod(position, self.scheduler.block_size)
        assert not self.scheduler.pool.shared(sequence.blocks[block])
        self.memory.setdefault(("device", sequence.blocks[block]), {})[offset] = line

    @staticmethod
    def seed(sequence: Sequence, length: int) -> int:
        return sequence.branch if length == sequence.prompt_length else 0

    def step(self) -> None:
        if self.overlaps:
            self.step_behind()
            return
        for sequence in self.scheduler.running:
            if not sequence.draft and sequence.computed == len(sequence.tokens) - 1:
                sequence.draft = self.guess(sequence)
        step = self.scheduler.schedule()
        self.check(step)
        self.move(step)
        sampled = [self.compute(chunk) for chunk in step.chunks]
        done = self.scheduler.complete(
            step, [tokens for c, tokens in zip(step.chunks, sampled, strict=True) if c.samples]
        )
        for sequence in (*self.scheduler.running, *done):
            self.alive[sequence.id, sequence.branch] = sequence
        assert 0 <= self.scheduler.waste < 1
        for sequence in done:
            self.ended.append(self.alive.pop((sequence.id, sequence.branch)))

    def step_behind(self) -> None:
        """Schedule and compute a step before the tokens of the one before it are told, if nothing branches there."""
        scheduler, known = self.scheduler, self.flight
        done: list[Sequence] = []
        if known:
            done = scheduler.complete(known[0], [[-1 - row] for row in range(len(known[1]))])
        step = scheduler.schedule()
        self.check(step)
        self.move(step)
        computed = [self.compute(chunk) for chunk in step.chunks]
        drawn = [tokens for chunk, tokens in zip(step.chunks, computed, strict=True) if chunk.samples]
        if known:
            scheduler.settle(known[0], [tokens[0] for tokens in known[1]])
            done += [c.sequence for c in known[0].chunks if c.samples and c.sequence.finish_reason]
        self.flight = step, drawn
        if any(len(tokens) > 1 for tokens in drawn) or not step.chunks:
            done += scheduler.complete(step, drawn)
            self.flight = None
        for sequence in (*scheduler.running, *done):
            if sequence.finish_reason is None:
                self.alive[sequence.id, sequence.branch] = sequence
        for sequence in done:
            if self.alive.pop((sequence.id, sequence.branch), None):
                self.ended.append(sequence)
        assert 0 <= scheduler.waste <= 1  # what a step under way computes is not recorded yet

    def guess(self, sequence: Sequence) -> Draft:
        lines = {LAST: list(sequence.tokens)}
        tokens: list[int] = []
        parents: list[int] = []
        for node in range(self.random.choice((0, 0, 1, 3, 9))):
            parent = self.random.randrange(max(LAST, node - 3), node)
            right = next_token(lines[parent])
            tokens.append(right if self.random.random() > self.wrong_drafts else right + 1 + node)
            parents.append(parent)
            lines[node] = [*lines[parent], tokens[-1]]
        return Draft(tuple(tokens), tuple(parents))

    def check(self, step: Step) -> None:
        scheduler = self.scheduler
        assert sum(c.end - c.start + len(c.draft) for c in step.chunks) <= scheduler.token_budget
        assert step.chunks or not (scheduler.running or scheduler.waiting), "a step does something"
        assert sum(s.branches for s in scheduler.running) <= scheduler.max_sequences
        holders = Counter(block for s in scheduler.running for block in s.blocks)
        assert len(holders) == scheduler.pool.held
        assert len(holders) + scheduler.pool.available == scheduler.pool.num_blocks
        assert all(scheduler.pool.shared(block) == (count > 1) for block, count in holders.items())
        assert all(not s.blocks for s in scheduler.waiting)
        for line in (scheduler.running, scheduler.waiting):
            assert [s.key for s in line] == sorted(s.key for s in line)

    def arrive(self, number: int) -> None:
        beginning = [self.random.randrange(3)] * self.random.choice((0, 5, 16, 40))
        prompt = beginning + [self.random.randrange(VOCABULARY) for _ in range(self.random.randrange(1, 20))]
        capacity = self.scheduler.capacity
        wanted = self.random.randrange(1, 25)
        prompt = prompt[: capacity - wanted]
        branches = self.random.choice((1, 1, 1, self.scheduler.max_sequences))
        stop = frozenset({7}) if self.random.random() < 0.3 else frozenset[int]()
        priority = self.random.choice((0, 0, 0, -1, 2))
        sequence = Sequence(number, prompt, wanted, stop, priority, branches)
        self.scheduler.add(sequence)
        self.alive[number, 0] = sequence

    def abort(self) -> None:
        sequence = self.random.choice(list(self.alive.values()))
        self.scheduler.end(sequence, "abort")
        self.ended.append(self.alive.pop((sequence.id, sequence.branch)))


def run(events: int, seed: int, overlaps: bool = False, **options: int) -> World:
    chance = random.Random(seed)
    size = chance.choice((1, 2, 4, 16))
    blocks = blocks_for(64, size) + chance.randrange(0, 30)
    scheduler = Scheduler(
        BlockPool(blocks), size, chance.choice((1, 3, 16, 64)), chance.choice((1, 2, 8)), **options
    )
    world = World(scheduler, chance, overlaps=overlaps)
    for number in range(events):
        match chance.choices(("arrive", "abort", "step"), (2, 0.3, 8))[0]:
            case "arrive" if len(world.alive) < 60:
                world.arrive(number)
            case "abort" if world.alive:
                world.abort()
            case _:
                world.step()
    for _ in range(100_000):
        if not (scheduler.running or scheduler.waiting or world.flight):
            break
        world.step()
    assert not world.alive, "everybody ends"
    assert scheduler.pool.available == scheduler.pool.num_blocks, "no block is lost"
    assert scheduler._host.available == scheduler._host.num_blocks
    return world


@pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "overlapping"])
@pytest.mark.parametrize("host_blocks", [0, 40])
@pytest.mark.parametrize("seed", range(8))
def test_scheduler_under_random_events_computes_each_token_over_exactly_those_before_it(
    seed: int, host_blocks: int, overlaps: bool
) -> None:
    world = run(1500, seed, overlaps, host_blocks=host_blocks)
    for sequence in world.ended:
        line = sequence.tokens[: sequence.prompt_length]
        for token in sequence.generated:
            assert token == next_token(line, World.seed(sequence, len(line)))
            line.append(token)
        assert sequence.finish_reason is not None


@pytest.mark.slow
def test_scheduler_under_a_hundred_thousand_random_events_loses_and_shares_nothing_wrongly() -> None:
    worlds = [run(5000, 1000 + seed, host_blocks=seed % 3 * 20) for seed in range(20)]
    assert sum(world.scheduler.counters.preemptions for world in worlds) > 1000
    assert sum(world.scheduler.counters.prefix_hit_tokens for world in worlds) > 1000
    assert sum(world.scheduler.counters.accepted_tokens for world in worlds) > 1000


def finish(scheduler: Scheduler) -> list[tuple[int, int]]:
    order = []
    while scheduler.running or scheduler.waiting:
        step = scheduler.schedule()
        sampled = [
            [next_token(c.sequence.tokens[: c.end], b) for b in range(c.sequence.branches)]
            for c in step.chunks
            if c.samples
        ]
        order += [(s.id, s.branch) for s in scheduler.complete(step, sampled)]
    return order


def test_prompt_when_its_beginning_was_computed_before_then_only_the_rest_is_computed() -> None:
    scheduler = Scheduler(BlockPool(20), 4, 64, 4)
    scheduler.add(Sequence(0, list(range(10)), 3))
    finish(scheduler)
    scheduler.add(Sequence(1, [*range(8), 99, 98, 97], 3))
    [chunk] = scheduler.schedule().chunks
    assert (chunk.start, chunk.end, chunk.sequence.blocks[:2]) == (8, 11, [0, 1])
    assert scheduler.counters.prefix_hit_tokens == 8


def test_prompt_when_all_of_it_is_in_the_cache_then_its_last_block_is_computed_again() -> None:
    scheduler = Scheduler(BlockPool(20), 4, 64, 4)
    scheduler.add(Sequence(0, list(range(8)), 3))
    finish(scheduler)
    scheduler.add(Sequence(1, list(range(8)), 3))
    assert [(c.start, c.end) for c in scheduler.schedule().chunks] == [(4, 8)]


def test_own_blocks_found_again_after_a_preemption_are_no_hits_of_the_prefix_cache() -> None:
    scheduler = Scheduler(BlockPool(20), 4, 64, 1)
    patient = Sequence(0, list(range(10)), 3)
    scheduler.add(patient)
    scheduler.complete(scheduler.schedule(), [[1]])
    scheduler.add(Sequence(1, [40], 2, priority=-1))
    finish(scheduler)
    assert scheduler.counters.preemptions == 1
    assert (scheduler.counters.prefix_hit_tokens, patient.cached) == (0, 0)


def test_kept_prefixes_when_room_is_needed_then_the_longest_unused_goes_first() -> None:
    scheduler = Scheduler(BlockPool(4), 4, 64, 4)
    for number, first in enumerate((10, 20)):
        scheduler.add(Sequence(number, [first] * 8, 1))
        finish(scheduler)
    scheduler.add(Sequence(2, [10] * 8, 1))  # used again
    finish(scheduler)
    scheduler.add(Sequence(3, [30] * 4, 1))
    finish(scheduler)
    hits = scheduler.counters.prefix_hit_tokens
    scheduler.add(Sequence(4, [10] * 5, 1))
    finish(scheduler)
    assert scheduler.counters.prefix_hit_tokens == hits + 4


def test_branches_when_the_prompt_ends_inside_a_block_then_only_that_block_is_copied() -> None:
    scheduler = Scheduler(BlockPool(20), 4, 64, 4)
    scheduler.add(Sequence(0, list(range(6)), 4, branches=3))
    step = scheduler.schedule()
    scheduler.complete(step, [[1, 2, 3]])
    step = scheduler.schedule()
    assert [s.tokens[-1] for s in scheduler.running] == [1, 2, 3]
    assert [source for source, _ in step.copies] == [1, 1], "the last of the three keeps it"
    assert [s.blocks[0] for s in scheduler.running] == [0, 0, 0]
    assert len({s.blocks[1] for s in scheduler.running}) == 3


def test_urgent_request_when_all_places_are_taken_then_it_preempts_the_least_urgent() -> None:
    scheduler = Scheduler(BlockPool(20), 4, 64, 2)
    for number in range(2):
        scheduler.add(Sequence(number, [number] * 4, 20))
    scheduler.complete(scheduler.schedule(), [[1], [1]])
    scheduler.add(Sequence(2, [9] * 4, 20, priority=-1))
    step = scheduler.schedule()
    assert [p.sequence.id for p in step.preempted] == [1]
    assert sorted(c.sequence.id for c in step.chunks) == [0, 2]


def test_patient_request_when_urgent_ones_never_stop_coming_then_its_turn_comes() -> None:
    scheduler = Scheduler(BlockPool(20), 4, 64, 1)
    scheduler.add(Sequence(0, [1], 1, priority=1))
    for number in range(1, AGING_STEPS + 10):
        scheduler.add(Sequence(number, [2], 1))
        step = scheduler.schedule()
        if any(s.id == 0 for s in scheduler.complete(step, [[3]])):
            return
    pytest.fail("it waited for ever")


def test_swap_when_host_blocks_are_there_then_nothing_is_computed_twice() -> None:
    scheduler = Scheduler(BlockPool(4), 2, 16, 4, host_blocks=4, share_prefixes=False)
    first, second = Sequence(0, [1, 2, 3, 4], 4), Sequence(1, [5, 6, 7, 8], 4)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.complete(scheduler.schedule(), [[1], [1]])
    step = scheduler.schedule()
    assert [p.sequence for p in step.preempted] == [second]
    assert [source for source, _ in step.swap_out] == [2, 3]
    scheduler.complete(step, [[2]])
    while first.finish_reason is None:
        scheduler.complete(scheduler.schedule(), [[2]])
    step = scheduler.schedule()
    assert [(c.start, c.end) for c in step.chunks] == [(4, 5)]
    assert [host for host, _ in step.swap_in] == [0, 1]


def test_add_when_more_branches_than_places_then_refused() -> None:
    with pytest.raises(ValueError, match="5 branches do not fit into 4 places"):
        Scheduler(BlockPool(4), 2, 16, 4).add(Sequence(0, [1], 1, branches=5))
