"""Speculation changes how soon tokens come, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import SHIPPED, MakeModel, mixed_prompts, noisy_copy

from engine import LLM, Completion, SamplingParams
from engine.draft import LAST, NOTHING, Draft
from engine.speculation.proposer import Context
from hub_loader.errors import UsageError


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
PROMPTS += [PROMPTS[-1][:100] + [1], PROMPTS[-1][:100] + [2]]
GREEDY = SamplingParams(max_tokens=16, ignore_stop=True)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_sequences": 1},
        {"token_budget": 9},
        {"num_blocks": 22, "block_size": 8},
        {"num_blocks": 22, "block_size": 8, "host_blocks": 20},
        {"share_prefixes": False, "block_size": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_with_any_proposer_under_any_limits_are_those_of_plain_decoding(
    make_model: MakeModel, drafter: Path, kind: str, limits: dict[str, Any]
) -> None:
    folder = SHIPPED if kind == "ngram:4" else make_model()  # it repeats itself, random weights do not
    expected = tokens(LLM(folder).generate(PROMPTS, GREEDY))
    speculate: Any = kind.format(drafter)
    if kind == "trees":
        speculate = RandomTrees([(*p, *t) for p, t in zip(PROMPTS, expected, strict=True)])
    llm = LLM(folder, speculate=speculate, **limits)
    assert tokens(llm.generate(PROMPTS, GREEDY)) == expected
    again = llm.generate(PROMPTS, GREEDY)
    assert tokens(again) == expected
    counters = llm.scheduler.counters
    assert counters.accepted_tokens > 0
    assert counters.tokens_per_step > 1
    assert llm.scheduler.pool.held == 0
    assert any(c.cached_tokens for c in again) == ("share_prefixes" not in limits)
    assert (counters.preemptions > 0) == ("num_blocks" in limits)
