"""Speculation changes how soon tokens come, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import SHIPPED, MakeModel, mixed_prompts, noisy_copy

from engine import LLM, Completion, SamplingParams
from engine.draft import LAST, Draft
from engine.speculation.proposer import Context


class RandomTrees:
    """Trees of any shape; a branch of each says what is known to come, up to a random depth."""

    draws_trees = True

    def __init__(self, known: Sequence[Sequence[int]], seed: int = 0) -> None:
        self._known = [tuple(line) for line in known]
        self._generator = torch.Generator().manual_seed(seed)

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        return [self._guess(context) for context in contexts]

    def _guess(self, context: Context) -> Draft:
        tokens, so_far = [], tuple(context.tokens)
        line = next((k for k in self._known if k[: len(so_far)] == so_far), so_far)[len(so_far) :]
        parents: list[int] = []
        right = {LAST: 0}  # nodes of the right line, and how deep they are
        for node in range(self._draw(12)):
            parent = self._draw(node + 1) - 1
            parents.append(parent)
            depth = right.get(parent, len(line))
            if depth < len(line) and self._draw(2) and not self._said(line[depth], parent, tokens, parents):
                tokens.append(line[depth])
                right[node] = depth + 1
            else:
                tokens.append(self._draw(256))
        return Draft(tuple(tokens), tuple(parents))

    @staticmethod
    def _said(token: int, parent: int, tokens: list[int], parents: list[int]) -> bool:
        return (parent, token) in zip(parents, tokens, strict=False)

    def _draw(self, below: int) -> int:
        return int(torch.randint(below, (1,), generator=self._generator))


@pytest.fixture(scope="module")
def drafter(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_copy(make_model(), tmp_path_factory.mktemp("drafter"), 0.1)


def tokens(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in completions]


KINDS = ("ngram:4", "draft:{}:4", "tree:{}:12", "trees")
PROMPTS = mixed_prompts(count=4, vocabulary=256, seed=40)
PROMPTS += [[*PROMPTS[-1][:100], last] for last in (1, 2)]
GREEDY = SamplingParams(max_tokens=16, ignore_stop=True)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        pytest.param({"max_sequences": 1}, marks=pytest.mark.slow),
        {"token_budget": 9},
        pytest.param({"num_blocks": 22, "block_size": 8}, marks=pytest.mark.slow),
        {"num_blocks": 22, "block_size": 8, "host_blocks": 20},
        pytest.param({"share_prefixes": False, "block_size": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_with_any_proposer_under_any_limits_are_those_of_plain_decoding(
    make_model: MakeModel, drafter: Path, kind: str, limits: dict[str, Any]
) -> None:
    folder = SHIPPED if kind == "ngram:4" else make_model()  # it repeats itself, random weights do not
    expected = tokens(LLM(folder, max_sequences=9).generate(PROMPTS, GREEDY))
    speculate: Any = kind.format(drafter)
    if kind == "trees":
        speculate = RandomTrees([(*p, *t) for p, t in zip(PROMPTS, expected, strict=True)])
    llm = LLM(folder, speculate=speculate, **{"max_sequences": 9, **limits})
    assert tokens(llm.generate(PROMPTS, GREEDY)) == expected
    again = llm.generate(PROMPTS, GREEDY)
    assert tokens(again) == expected
    counters = llm.scheduler.counters
    assert counters.accepted_tokens > 0
    assert counters.tokens_per_step > 1
    assert llm.scheduler.pool.held == 0
    assert any(c.cached_tokens for c in again) == ("share_prefixes" not in limits)
    assert (counters.preemptions > 0) == ("num_blocks" in limits)


ASKED = {
    "stop text": SamplingParams(max_tokens=40, ignore_stop=True, stop=("self", ")")),
    "seed": SamplingParams(max_tokens=20, temperature=0.8, top_p=0.9, seed=3, ignore_stop=True),
    "branches": SamplingParams(max_tokens=12, temperature=1.0, seed=5, n=3, ignore_stop=True),
    "penalties": SamplingParams(
        max_tokens=20, repetition_penalty=1.3, presence_penalty=0.5, ignore_stop=True
    ),
    "logprobs": SamplingParams(max_tokens=10, logprobs=2, ignore_stop=True),
    "regex": SamplingParams(max_tokens=30, regex=r"[0-9]{3}-[a-f]{4}(-[a-f]{4})?"),
    "one token": SamplingParams(max_tokens=1),
}
TEXTS = ["def main(arguments):\n    return ", "import os\nimport ", "class A(B):\n    def __init__(self"]


@pytest.fixture(scope="module")
def shipped_drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_copy(SHIPPED, tmp_path_factory.mktemp("shipped-drafter"), 0.1)


@pytest.fixture(scope="module")
def plain() -> LLM:
    return LLM(SHIPPED, max_sequences=9)


@pytest.fixture(scope="module", params=["ngram:3", "draft:{}:3", "tree:{}:8:4"])
def speculating(request: pytest.FixtureRequest, shipped_drafter: Path) -> LLM:
    return LLM(SHIPPED, max_sequences=9, speculate=request.param.format(shipped_drafter))


@pytest.mark.parametrize("asked", ASKED)
def test_completions_of_any_request_with_speculation_are_those_of_plain_decoding(
    plain: LLM, speculating: LLM, asked: str
) -> None:
    params = ASKED[asked]
    found, expected = speculating.generate(TEXTS, params), plain.generate(TEXTS, params)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.tokens, ours.text, ours.finish_reason) == (
            theirs.tokens,
            theirs.text,
            theirs.finish_reason,
        )
        assert [c.token for c in ours.choices] == [c.token for c in theirs.choices]
        for our, their in zip(ours.choices, theirs.choices, strict=True):
            assert our.logprob == pytest.approx(their.logprob, abs=1e-4)
    assert speculating.scheduler.pool.held == 0


def test_pieces_of_several_tokens_a_step_join_to_the_text_and_nothing_follows_the_end(
    plain: LLM, shipped_drafter: Path
) -> None:
    params = SamplingParams(max_tokens=30, ignore_stop=True)
    [expected] = plain.generate(TEXTS[:1], params)
    llm = LLM(SHIPPED, max_sequences=9, speculate=f"tree:{shipped_drafter}:8")
    llm.add(TEXTS[0], params)
    deltas = []
    while llm.busy:
        deltas += llm.step()
    assert len(deltas) < len(expected.tokens)
    assert [c.token for delta in deltas for c in delta.choices] == list(expected.tokens)
    assert "".join(delta.text for delta in deltas) == expected.text
    assert [delta.completion is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]


def test_a_draft_model_equal_to_the_model_is_right_about_every_token(plain: LLM) -> None:
    params = SamplingParams(max_tokens=21, ignore_stop=True)
    expected = tokens(plain.generate(TEXTS, params))
    for speculate, a_turn in ((f"draft:{SHIPPED}:4", 5.0), (f"tree:{SHIPPED}:16:4", 5.0)):
        llm = LLM(SHIPPED, max_sequences=9, speculate=speculate)
        assert tokens(llm.generate(TEXTS, params)) == expected
        counters = llm.scheduler.counters
        assert (counters.guesses, counters.acceptance_length) == (3 * 4, 4.0)
        # One token comes with the prompt.
        assert counters.tokens_per_step == 3 * 21 / counters.turns == (1 + 4 * a_turn) / 5


def test_an_aborted_line_and_one_that_is_added_later_leave_the_others_tokens_alone(
    plain: LLM, shipped_drafter: Path
) -> None:
    params = SamplingParams(max_tokens=20, ignore_stop=True)
    expected = tokens(plain.generate(TEXTS[:2], params))
    llm = LLM(SHIPPED, max_sequences=9, speculate=f"draft:{shipped_drafter}:4")
    kept, gone = llm.add(TEXTS[0], params), llm.add(TEXTS[2], params)
    done = {delta.request_id: delta.completion for _ in range(2) for delta in llm.step()}
    llm.abort(gone)
    late = llm.add(TEXTS[1], params)
    while llm.busy:
        done |= {delta.request_id: delta.completion for delta in llm.step()}
    assert [done[kept].tokens, done[late].tokens] == expected  # type: ignore[union-attr]
