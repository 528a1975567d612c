import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block_pool import BlockPool, blocks_for
from engine.draft import Draft
from engine.scheduler import Chunk, Scheduler, Step
from engine.sequence import Sequence

requests_lists = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=8)


def next_token(tokens: list[int]) -> int:
    """A stand-in model: the next token is a function of all tokens before it."""
    return hash(tuple(tokens)) % 1000


def sampled_tokens(step: Step) -> list[list[int]]:
    return [[next_token(c.sequence.tokens[: c.end])] for c in step.chunks if c.samples]


def check_step(scheduler: Scheduler, step: Step, in_cache: dict[int, int]) -> None:
    """The invariants of one step; `in_cache` maps a request's id to its tokens whose K/V exist."""
    assert 0 < sum(c.end - c.start for c in step.chunks) <= scheduler.token_budget
    assert len(scheduler.running) <= scheduler.max_sequences
    for preemption in step.preempted:
        in_cache[preemption.sequence.id] = 0
        assert preemption.sequence.blocks == []
        assert preemption.sequence not in [c.sequence for c in step.chunks]
        assert str(preemption.sequence.id) in preemption.reason
    for chunk in step.chunks:
        assert chunk.start == in_cache.get(chunk.sequence.id, 0), "computes exactly what the cache lacks"
        assert chunk.start < chunk.end <= len(chunk.sequence.tokens)
        assert chunk.samples == (chunk.end == len(chunk.sequence.tokens))
        assert len(chunk.sequence.blocks) == blocks_for(chunk.end, scheduler.block_size)
        in_cache[chunk.sequence.id] = chunk.end
    held = [block for sequence in scheduler.running for block in sequence.blocks]
    assert len(held) == len(set(held)), "no block belongs to two sequences"
    assert len(held) + scheduler.pool.available == scheduler.pool.num_blocks, "no block is lost"
    arrivals = [s.id for s in (*scheduler.running, *scheduler.waiting)]
    assert arrivals == sorted(arrivals), "nobody overtakes an earlier request"


@given(
    requests=requests_lists,
    block_size=st.integers(1, 16),
    spare_blocks=st.integers(0, 10),
    budget=st.integers(1, 50),
    max_sequences=st.integers(1, 8),
)
def test_scheduler_for_any_requests_and_any_pool_finishes_each_with_the_tokens_it_gets_alone(
    requests: list[tuple[int, int]], block_size: int, spare_blocks: int, budget: int, max_sequences: int
) -> None:
    largest = max(blocks_for(prompt + new - 1, block_size) for prompt, new in requests)
    pool = BlockPool(largest + spare_blocks)
    scheduler = Scheduler(pool, block_size, budget, max_sequences, share_prefixes=False)
    sequences = [Sequence(i, list(range(i, i + prompt)), new) for i, (prompt, new) in enumerate(requests)]
    for sequence in sequences:
        scheduler.add(sequence)

    finished: list[Sequence] = []
    in_cache: dict[int, int] = {}
    while scheduler.running or scheduler.waiting:
        step = scheduler.schedule()
        check_step(scheduler, step, in_cache)
        finished += scheduler.complete(step, sampled_tokens(step))

    assert sorted(s.id for s in finished) == [s.id for s in sequences]
    assert scheduler.pool.available == scheduler.pool.num_blocks
    for sequence, (_, new) in zip(sequences, requests, strict=True):
        alone = sequence.tokens[: sequence.prompt_length]
        for _ in range(new):
            alone.append(next_token(alone))
        assert sequence.tokens == alone
        assert sequence.finish_reason == "length"


def one_step(scheduler: Scheduler) -> Step:
    step = scheduler.schedule()
    scheduler.complete(step, sampled_tokens(step))
    return step


def test_step_when_one_sequence_decodes_and_a_long_prompt_waits_then_both_share_the_budget() -> None:
    scheduler = Scheduler(BlockPool(100), block_size=4, token_budget=8, max_sequences=4)
    short, long = Sequence(0, [1, 2, 3], 10), Sequence(1, list(range(20)), 10)
    scheduler.add(short)
    one_step(scheduler)
    scheduler.add(long)
    assert one_step(scheduler).chunks == [Chunk(short, 3, 4, True), Chunk(long, 0, 7, False)]
    assert one_step(scheduler).chunks == [Chunk(short, 4, 5, True), Chunk(long, 7, 14, False)]
    assert one_step(scheduler).chunks == [Chunk(short, 5, 6, True), Chunk(long, 14, 20, True)]


def test_step_when_blocks_run_out_then_the_latest_arrival_is_preempted_and_recomputes() -> None:
    scheduler = Scheduler(BlockPool(4), block_size=2, token_budget=16, max_sequences=4)
    first, second = Sequence(0, [1, 2, 3, 4], 4), Sequence(1, [5, 6, 7, 8], 4)
    scheduler.add(first)
    scheduler.add(second)
    one_step(scheduler)  # two blocks each, all four in use
    step = one_step(scheduler)
    assert step.chunks == [Chunk(first, 4, 5, True)]
    assert [p.sequence for p in step.preempted] == [second]
    assert "request 1 gave up 2 KV blocks for request 0" in step.preempted[0].reason
    assert "raise num_blocks" in step.preempted[0].reason
    while first.finish_reason is None:
        one_step(scheduler)
    assert one_step(scheduler).chunks == [Chunk(second, 0, 5, True)]  # its prompt and the token it had


def test_step_when_the_earliest_waiting_does_not_fit_then_a_shorter_one_does_not_overtake() -> None:
    scheduler = Scheduler(BlockPool(4), block_size=1, token_budget=16, max_sequences=4)
    for i, length in enumerate((2, 3, 1)):
        scheduler.add(Sequence(i, [7] * length, 1))
    assert [c.sequence.id for c in scheduler.schedule().chunks] == [0]


def test_sequence_when_it_draws_a_stop_token_then_it_finishes_early() -> None:
    scheduler = Scheduler(BlockPool(4), block_size=4, token_budget=16, max_sequences=4)
    sequence = Sequence(0, [1, 2], 10, stop_tokens=frozenset({42}))
    scheduler.add(sequence)
    assert scheduler.complete(scheduler.schedule(), [[41]]) == []
    assert scheduler.complete(scheduler.schedule(), [[42]]) == [sequence]
    assert (sequence.generated, sequence.finish_reason) == ([41, 42], "stop")


def test_schedule_when_nothing_is_queued_then_the_step_is_empty() -> None:
    assert Scheduler(BlockPool(1), 1, 1, 1).schedule() == Step(budget=1)


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        (Sequence(0, [], 1), "at least one"),
        (Sequence(0, [1], 0), "at least one"),
        (Sequence(0, [1] * 8, 2), "9 tokens do not fit into a cache of 8"),
    ],
)
def test_add_when_a_sequence_could_never_run_then_refused(sequence: Sequence, reason: str) -> None:
    scheduler = Scheduler(BlockPool(2), block_size=4, token_budget=16, max_sequences=4)
    with pytest.raises(ValueError, match=reason):
        scheduler.add(sequence)


def test_sequence_for_which_nothing_was_drawn_ends_and_the_others_of_its_step_go_on() -> None:
    scheduler = Scheduler(BlockPool(8), block_size=4, token_budget=16, max_sequences=4)
    sequences = [Sequence(i, [1, 2, 3], 5) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert scheduler.complete(scheduler.schedule(), [[7], [], [9]]) == [sequences[1]]
    assert sequences[1].finish_reason == "error"
    assert [s.generated for s in sequences] == [[7], [], [9]]
    assert scheduler.running == [sequences[0], sequences[2]]
    assert scheduler.counters.generated_tokens == scheduler.counters.turns == 2


def test_counters_count_every_token_and_every_preemption() -> None:
    scheduler = Scheduler(BlockPool(4), block_size=2, token_budget=16, max_sequences=4)
    for i in range(4):
        scheduler.add(Sequence(i, [i, 2], 6))
    preempted = 0
    while scheduler.running or scheduler.waiting:
        preempted += len(one_step(scheduler).preempted)
    assert preempted > 1
    assert scheduler.counters.preemptions == preempted
    assert scheduler.counters.generated_tokens == scheduler.counters.turns == 24
    assert scheduler.counters.guesses == scheduler.counters.accepted_tokens == 0
    assert scheduler.counters.prompt_tokens == 8


def test_counters_count_drafts_and_what_was_accepted_of_them() -> None:
    scheduler = Scheduler(BlockPool(16), block_size=2, token_budget=16, max_sequences=4)
    sequence = Sequence(0, [1, 2], 12)
    scheduler.add(sequence)
    one_step(scheduler)
    counted = []
    for accepted in (2, 0, 1):
        sequence.draft = Draft((7, 8, 9), (-1, 0, 1))
        step = scheduler.schedule()
        assert [len(chunk.draft) for chunk in step.chunks] == [3]
        scheduler.complete(step, [[*[7, 8, 9][:accepted], 5]])
        counted.append((scheduler.counters.guesses, scheduler.counters.accepted_tokens))
    assert counted == [(1, 2), (2, 2), (3, 3)]
    assert sequence.generated[1:] == [7, 8, 5, 5, 7, 5]


def test_sequence_that_was_ended_while_it_was_computed_is_passed_over_and_the_next_is_not() -> None:
    scheduler = Scheduler(BlockPool(8), block_size=4, token_budget=16, max_sequences=4)
    first, second = Sequence(0, [1, 2, 3], 5), Sequence(1, [1, 2, 3], 5)
    for sequence in (first, second):
        scheduler.add(sequence)
    step = scheduler.schedule()
    scheduler.end(first, "abort")
    assert scheduler.complete(step, [[7], [8]]) == []
    assert (first.generated, first.finish_reason, second.generated) == ([], "abort", [8])


def test_settle_ends_what_drew_a_stop_token_and_wants_a_token_for_each() -> None:
    scheduler = Scheduler(BlockPool(8), block_size=4, token_budget=16, max_sequences=4)
    first, second = (Sequence(i, [1, 2, 3], 5, stop_tokens=frozenset({42})) for i in range(2))
    for sequence in (first, second):
        scheduler.add(sequence)
    step = scheduler.schedule()
    scheduler.complete(step, [[0], [0]])  # what stands in until the tokens are known
    with pytest.raises(ValueError, match="shorter"):
        scheduler.settle(step, [7])
    scheduler.settle(step, [7, 42])
    assert (first.generated, first.finish_reason) == ([7], None)
    assert (second.generated, second.finish_reason, second.ended) == ([42], "stop", "stop")
    assert scheduler.running == [first]


def test_blocks_are_kept_for_nobody_where_prefixes_are_not_shared() -> None:
    scheduler = Scheduler(BlockPool(8), 4, token_budget=16, max_sequences=4, share_prefixes=False)
    sequence = Sequence(0, list(range(9)), 5)
    scheduler.add(sequence)
    one_step(scheduler)
    assert (sequence.computed, sequence.sealed, sequence.digests) == (9, 0, [])


@pytest.mark.parametrize(("room", "swaps"), [(1, False), (2, True), (3, True)])
def test_preempted_sequence_goes_to_the_host_when_all_of_it_fits(room: int, swaps: bool) -> None:
    scheduler = Scheduler(BlockPool(4), block_size=2, token_budget=16, max_sequences=4, host_blocks=room)
    first, second = Sequence(0, [1, 2, 3, 4], 4), Sequence(1, [5, 6, 7, 8], 4)
    scheduler.add(first)
    scheduler.add(second)
    one_step(scheduler)
    step = one_step(scheduler)
    assert len(step.swap_out) == (2 if swaps else 0)
    again = "copy them in again from host memory" if swaps else "compute 4 tokens again"
    assert f"and will {again}: 4 blocks" in step.preempted[0].reason
    assert second.computed == (4 if swaps else 0)
