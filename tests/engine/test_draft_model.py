"""A draft model's memory: as much as its contexts need, kept from one guess to the next, whole after a failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_models import SHIPPED

from engine import LLM, SamplingParams, torch_ops
from engine.model import Decoder
from engine.speculation.draft_model import DraftModel, ModelChain, ModelTree
from engine.speculation.proposer import Context


class Counting:
    """A decoder that counts the tokens it computes."""

    def __init__(self, model: Decoder) -> None:
        self._model, self.tokens = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, batch: Any, cache: Any) -> torch.Tensor:
        self.tokens += len(batch.tokens)
        return self._model.forward(batch, cache)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(SHIPPED, max_sequences=4)


def drafter(llm: LLM, tokens: int) -> tuple[DraftModel, Counting]:
    counting: Any = Counting(llm.model)
    return DraftModel(counting, torch_ops.plan_step, llm.config.vocab_size, tokens, 4), counting


def contexts(lines: Sequence[Sequence[int]], **params: Any) -> list[Context]:
    return [Context((number, 0), line, SamplingParams(**params), 9) for number, line in enumerate(lines)]


LINES = [[10 + number] * 40 for number in range(4)]


def blocks(model: DraftModel) -> int:
    return len(model._cache[0][0])


def test_its_cache_is_as_large_as_contexts_need_and_not_as_the_models(llm: LLM) -> None:
    model, _ = drafter(llm, 40_000)
    chains = ModelChain(model, 4).propose(contexts(LINES[:2]))
    assert [len(each) for each in chains] == [4, 4]
    assert blocks(model) == 2 * 2 * 11
    ModelChain(model, 4).propose(contexts(LINES))
    assert blocks(model) == 2 * 2 * 11


def test_contexts_beyond_the_cache_get_no_guess_and_drive_nobody_out(llm: LLM) -> None:
    model, counting = drafter(llm, 100)
    proposer = ModelChain(model, 4)
    first = proposer.propose(contexts(LINES))
    assert [len(each) for each in first] == [4, 4, 0, 0]
    assert blocks(model) == 25
    counting.tokens = 0
    assert proposer.propose(contexts(LINES)) == first
    assert counting.tokens == 2 * (4 + 3), "a block each, and all guesses but the last"


def test_branches_of_a_long_prompt_take_its_room_once(llm: LLM) -> None:
    model, _ = drafter(llm, 100)
    proposer = ModelChain(model, 4)
    branches = contexts([[*range(10, 50), last] for last in range(4)])
    assert [len(each) for each in proposer.propose(branches)] == [4] * 4


def test_a_run_that_fails_leaves_nothing_behind_for_the_next(llm: LLM) -> None:
    model, _ = drafter(llm, 40_000)
    expected = ModelChain(model, 4).propose(contexts(LINES[:1]))

    def fail(numbers: list[int], logits: torch.Tensor) -> list[int]:
        raise MemoryError

    for _ in range(2):
        with pytest.raises(MemoryError):
            model.run(contexts(LINES), 4, fail)
        assert ModelChain(model, 4).propose(contexts(LINES[:1])) == expected


def test_trees_for_a_temperature_too_cold_to_divide_by_are_those_of_greedy_lines(llm: LLM) -> None:
    model, _ = drafter(llm, 40_000)
    proposer = ModelTree(model, 6, 3)
    cold = proposer.propose(contexts(LINES, temperature=1e-40))
    assert cold == proposer.propose(contexts(LINES))


def test_chances_of_all_lines_together_take_no_more_than_their_room(llm: LLM) -> None:
    model, _ = drafter(llm, 40_000)
    row = 8 * llm.config.vocab_size
    roomy = ModelChain(model, 4, seed=1).propose(contexts(LINES, temperature=1.0))
    tight = ModelChain(model, 4, seed=1, most_bytes=2 * 4 * row + row).propose(
        contexts(LINES, temperature=1.0)
    )
    likeliest = ModelChain(model, 4).propose(contexts(LINES))
    assert [each.chances is not None for each in roomy] == [True] * 4
    assert [each.chances is not None for each in tight] == [True, True, False, False]
    assert sum(each.chances.untyped_storage().nbytes() for each in tight[:2]) == 2 * 4 * row
    assert [each.tokens for each in tight[2:]] == [each.tokens for each in likeliest[2:]]
    assert all(len(each) == 4 and each.chances.shape[0] == 4 for each in tight[:2])


def test_lines_that_have_no_room_for_chances_still_draw_what_their_own_model_says(llm: LLM) -> None:
    model, _ = drafter(llm, 40_000)
    drafted = LLM(SHIPPED, speculate=ModelChain(model, 4, most_bytes=0))
    params = SamplingParams(max_tokens=12, temperature=1e-2, ignore_stop=True)
    [drawn] = drafted.generate(["def main():"], params)
    [plain] = llm.generate(["def main():"], SamplingParams(max_tokens=12, ignore_stop=True))
    assert drawn.tokens == plain.tokens
    assert drafted.scheduler.counters.accepted_tokens > 0
