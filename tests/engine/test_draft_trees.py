"""Drafts as trees: which nodes are chosen, what each of them sees, and what the words of `speculate=` mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence as Sized
from dataclasses import replace

import pytest
import torch
from engine_models import SHIPPED, MakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import LLM, SamplingParams, torch_ops
from engine.batch import build_batch
from engine.block_pool import BlockPool
from engine.draft import LAST, Draft, chain
from engine.scheduler import Chunk, Scheduler, Step
from engine.sequence import Sequence
from engine.speculation.layout import moves, with_drafts
from engine.speculation.ngram import NGram
from engine.speculation.proposer import Context
from engine.speculation.spelling import Spelling, parse
from engine.speculation.tree import Position, best_tree
from hub_loader.errors import SelfTestError, UsageError

weights = st.lists(st.floats(0.01, 1), min_size=1, max_size=4)


def positions_of(lists: list[list[float]]) -> list[Position]:
    ordered = [sorted(each, reverse=True) for each in lists]
    return [
        [(10 * d + i, math.log(w / sum(each))) for i, w in enumerate(each)] for d, each in enumerate(ordered)
    ]


def lines(draft: Draft) -> list[tuple[int, ...]]:
    made: dict[int, tuple[int, ...]] = {LAST: ()}
    for node, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        made[node] = (*made[parent], token)
    return [made[node] for node in range(len(draft))]


@settings(max_examples=100, deadline=None)
@given(st.lists(weights, min_size=1, max_size=4), st.integers(1, 20))
def test_best_tree_is_the_spine_and_the_likeliest_lines_of_all(lists: list[list[float]], nodes: int) -> None:
    positions = positions_of(lists)
    tree = lines(best_tree(positions, nodes))
    spine = [tuple(p[0][0] for p in positions[:d]) for d in range(1, len(positions) + 1)][:nodes]
    logs = {token: log for position in positions for token, log in position}
    every = [
        line
        for depth in range(1, len(positions) + 1)
        for line in itertools.product(*([token for token, _ in p] for p in positions[:depth]))
    ]
    assert tree[: len(spine)] == spine
    assert len(set(tree)) == len(tree) == min(nodes, len(every))
    rest = sorted((sum(logs[t] for t in line) for line in every if line not in spine), reverse=True)
    found = sorted((sum(logs[t] for t in line) for line in tree[len(spine) :]), reverse=True)
    assert found == pytest.approx(rest[: len(found)])
    assert all(line[:-1] in tree[: tree.index(line)] for line in tree if len(line) > 1), "parents come first"


def test_a_draft_whose_parents_make_no_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="make no tree of 2 tokens"):
        Draft((1, 2), (LAST, 1))
    with pytest.raises(ValueError, match="make no tree"):
        Draft((1, 2), (LAST,))


def test_a_draft_is_cut_to_its_first_nodes_and_before_the_first_that_is_too_deep() -> None:
    draft = Draft((1, 2, 3, 4), (LAST, 0, 1, LAST))
    assert (draft.depths, draft.is_chain, chain([5, 6]).is_chain) == ([1, 2, 3, 1], False, True)
    assert draft.cut(9, 9) is draft
    assert draft.cut(9, 2).tokens == (1, 2)
    assert draft.cut(1, 9).tokens == (1,)
    assert draft.cut(-3, 9).tokens == ()


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_a_node_of_a_tree_sees_what_it_would_see_at_the_end_of_its_own_line(
    window: int | None, softcap: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    draft = Draft((0,) * 6, (LAST, 0, LAST, 1, 0, 2))
    length, size, heads = 9, 8, 2
    tree = Chunk(Sequence(0, [1] * length, 9, computed=5, blocks=[3, 0, 2, 5]), 5, length, True, draft)
    other = Chunk(Sequence(1, [1] * 7, 9, blocks=[1, 4]), 0, 7, True)
    batch = with_drafts(build_batch(Step([tree, other]), 4, torch_ops.plan_step), Step([tree, other]))
    assert batch.positions.tolist() == [5, 6, 7, 8, 9, 10, 9, 11, 10, 10, *range(7)]
    assert batch.sample_rows.tolist() == [*range(3, 10), 16]
    keys, values = torch.randn(2, 17, heads, size, generator=generator)
    query = torch.randn(17, heads, size, generator=generator)
    before = torch.randn(2, 5, heads, size, generator=generator)
    caches = torch.full((2, 6, 4, heads, size), torch.nan)
    torch_ops.reshape_and_cache_flash(*before, *caches, torch.tensor([12, 13, 14, 15, 0]))
    torch_ops.reshape_and_cache_flash(keys, values, *caches, batch.slot_mapping)
    options = {"scale": 0.5, "window": window, "softcap": softcap}
    rest = {"block_tables": batch.block_tables, "query_start_loc": batch.query_start_loc}
    out = torch_ops.attend(
        query, *caches, seq_lens=batch.seq_lens, tree_mask=batch.tree_mask, **rest, **options
    )

    ways = [[0], [0, 1], [2], [0, 1, 3], [0, 4], [2, 5]]
    for node, way in enumerate(ways):
        rows = [0, 1, 2, 3, *(4 + each for each in way)]
        total = 5 + len(rows)
        alone = torch.zeros(2, 1, total, heads, size)
        alone[:, 0] = torch.cat((before, torch.stack((keys[rows], values[rows]))), dim=1)
        expected = torch_ops.attend(
            query[[4 + node]],
            *alone,
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
            seq_lens=torch.tensor([total], dtype=torch.int32),
            query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
            **options,
        )
        torch.testing.assert_close(out[[4 + node]], expected)
    plain = torch_ops.attend(query, *caches, seq_lens=batch.seq_lens, **rest, **options)
    torch.testing.assert_close(out[10:], plain[10:])
    torch.testing.assert_close(out[:4], plain[:4])
    assert moves(tree, [2, 5], 4) == [(2 * 4 + 3, 2 * 4 + 1), (5 * 4 + 2, 2 * 4 + 2)]


def test_a_tree_of_more_than_32_nodes_has_a_mask_of_as_many_words_as_it_takes() -> None:
    draft = Draft(tuple(range(40)), (LAST,) * 40)
    step = Step([Chunk(Sequence(0, [1] * 3, 9, blocks=list(range(11))), 2, 3, True, draft)])
    batch = with_drafts(build_batch(step, 4, torch_ops.plan_step), step)
    assert batch.tree_mask is not None
    assert batch.tree_mask.shape == (41, 2)
    bits = [[(int(word) >> bit) & 1 for word in row for bit in range(32)] for row in batch.tree_mask]
    assert bits[0] == [1] * 64
    assert all(bits[1 + node][24:] == [int(other == node) for other in range(40)] for node in range(40))


def test_ngrams_guess_what_followed_the_latest_earlier_occurrence_of_the_longest_end() -> None:
    proposer = NGram(3)

    def guess(tokens: list[int], left: int = 9) -> tuple[int, ...]:
        [draft] = proposer.propose([Context((0, 0), tokens, SamplingParams(), left)])
        return draft.tokens

    text = [1, 2, 3, 4, 9, 2, 3, 5, 7, 7]
    assert guess([*text, 1, 2, 3]) == (4, 9, 2)
    assert guess([*text, 1, 2, 3, 8]) == ()
    assert guess([*text, 1, 2, 3, 8, 2, 3]) == (8, 2, 3), "the latest of three"
    assert guess([*text, 1, 2, 3, 8, 2, 3, 5, 7], left=1) == (7,)
    assert guess([6]) == ()


def test_drafts_take_what_room_is_left_and_never_a_place_or_block_of_others() -> None:
    scheduler = Scheduler(BlockPool(6), 4, 12, 4)
    for number in range(3):
        scheduler.add(Sequence(number, [number] * 3, 20))
    scheduler.complete(scheduler.schedule(), [[1], [1], [1]])
    for sequence in scheduler.running:
        sequence.draft = chain([5] * 9)
    step = scheduler.schedule()
    assert not step.preempted
    assert [len(chunk.draft) for chunk in step.chunks] == [3, 3, 3], "9 of the budget's 12 tokens are left"
    scheduler.complete(step, [[5, 5, 5, 5], [1], [1]])
    for sequence in scheduler.running:
        sequence.draft = chain([5] * 9)
    step = scheduler.schedule()
    assert [len(chunk.draft) for chunk in step.chunks] == [0, 3, 3], "all blocks are taken"
    assert not step.preempted


def test_blocks_of_rejected_drafts_are_given_back_so_that_nobody_is_preempted_for_a_guess() -> None:
    scheduler = Scheduler(BlockPool(6), 2, 64, 2)
    for number in range(2):
        scheduler.add(Sequence(number, [number] * 2, 9))
    scheduler.complete(scheduler.schedule(), [[1], [1]])
    scheduler.running[0].draft = chain([9] * 5)
    step = scheduler.schedule()
    assert (len(step.chunks[0].draft), scheduler.pool.available) == (5, 0)
    scheduler.complete(step, [[1], [1]])
    for _ in range(2):
        step = scheduler.schedule()
        assert not step.preempted
        scheduler.complete(step, [[1], [1]])
    assert [len(s.blocks) for s in scheduler.running] == [3, 3]


def test_a_draft_never_leads_past_the_last_token_that_was_asked_for() -> None:
    scheduler = Scheduler(BlockPool(9), 4, 64, 1)
    scheduler.add(Sequence(0, [1] * 3, 4))
    scheduler.complete(scheduler.schedule(), [[1]])
    scheduler.running[0].draft = Draft((1, 2, 3, 4, 5), (LAST, LAST, 0, 2, LAST))
    [chunk] = scheduler.schedule().chunks
    assert chunk.draft.tokens == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ngram:4", Spelling("ngram", "", 4, 2)),
        ("draft:some/folder:3", Spelling("draft", "some/folder", 3, 2)),
        ("draft:C:/model:3", Spelling("draft", "C:/model", 3, 2)),
        ("tree:model:16", Spelling("tree", "model", 16, 8)),
        ("tree:model:16:5", Spelling("tree", "model", 16, 5)),
        ("tree:model:3:5", Spelling("tree", "model", 3, 3)),
    ],
)
def test_spellings_of_speculate_are_parsed(text: str, expected: Spelling) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "ngram", "ngram:0", "ngram:x", "draft:4", "draft::4", "tree:m", "eagle:m:4"]
)
def test_other_words_are_refused_with_those_that_are_meant(text: str) -> None:
    with pytest.raises(UsageError, match="expected ngram:TOKENS, draft:MODEL:TOKENS, tree:MODEL:NODES"):
        parse(text)


def test_a_draft_model_with_other_tokens_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(UsageError, match="are not the model's: choose one with its tokenizer"):
        LLM(SHIPPED, max_sequences=1, speculate=f"draft:{make_model()}:4")


def test_trees_with_an_attention_kernel_that_knows_no_tree_mask_are_refused_and_chains_are_not() -> None:
    def attend(query: torch.Tensor, *caches: torch.Tensor, **rest: object) -> torch.Tensor:
        return query

    kernels = replace(LLM(SHIPPED, max_sequences=1).kernels, attend=attend)
    with pytest.raises(UsageError, match="use attention=torch, or speculate with chains"):
        LLM(SHIPPED, max_sequences=1, kernels=kernels, speculate=f"tree:{SHIPPED}:4")
    assert LLM(SHIPPED, max_sequences=1, kernels=kernels, speculate=f"draft:{SHIPPED}:4")


def test_a_kernel_that_is_right_for_the_model_and_wrong_for_its_draft_model_is_refused_at_the_start() -> None:
    def attend(query: torch.Tensor, keys: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        if keys.shape[1] != 16:
            raise ValueError("blocks of 16 only")
        return torch_ops.attend(query, keys, *rest, **options)  # type: ignore[arg-type]

    plain = LLM(SHIPPED, max_sequences=1).kernels
    bindings = tuple(replace(b, source="org/x") if b.slot == "attention" else b for b in plain.bindings)
    kernels = replace(plain, attend=attend, bindings=bindings)
    assert LLM(SHIPPED, max_sequences=1, kernels=kernels)
    with pytest.raises(SelfTestError, match=r"draft model .*: slot attention: org/x .* blocks of 16 only"):
        LLM(SHIPPED, max_sequences=1, kernels=kernels, speculate=f"draft:{SHIPPED}:2")
    llm = LLM(SHIPPED, max_sequences=1, kernels=kernels, speculate=f"draft:{SHIPPED}:2", fall_back=True)
    assert llm.kernels.attend is attend
    assert llm.generate(["def "], SamplingParams(max_tokens=4)) == LLM(SHIPPED).generate(
        ["def "], SamplingParams(max_tokens=4)
    )


def test_nobody_guesses_for_a_step_that_prompts_fill() -> None:
    asked = []

    class Asked:
        draws_trees = False

        def propose(self, contexts: Sized[Context]) -> list[Draft]:
            asked.append(len(contexts))
            return [chain([7]) for _ in contexts]

    llm = LLM(SHIPPED, max_sequences=2, token_budget=8, speculate=Asked())
    llm.add([1, 2], SamplingParams(max_tokens=20, ignore_stop=True))
    llm.step()
    llm.step()
    assert sum(asked) == 1
    llm.add(list(range(10, 34)), SamplingParams(max_tokens=1))
    llm.step()  # it is queued, and its length not yet known to be in the way
    for _ in range(2):
        llm.step()
    assert sum(asked) == 2
