"""Steps that overlap give the tokens, texts and reasons of steps that do not, whatever ends meanwhile."""

from __future__ import annotations

import random

import pytest
import torch
from engine_models import SHIPPED, MakeModel, mixed_prompts

from engine import LLM, Completion, SamplingParams

WORDS = ("return", "self", "\n\n", "import", ":")
WISHES: tuple[dict[str, object], ...] = (
    {},
    {"ignore_stop": True},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "seed": 4, "top_k": 20, "top_p": 0.9, "logprobs": 2},
    {"stop": WORDS},
    {"logit_bias": {7: 4.0, 9: -100.0}},
    {"frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 1.2, "seed": 5, "n": 3},
    {"regex": r"[0-9]{2}-[a-f]{3}"},
    {"stop_tokens": tuple(range(0, 2048, 3)), "logprobs": 0},
)


def said(completion: Completion) -> tuple[object, ...]:
    return (
        completion.tokens,
        completion.text,
        completion.finish_reason,
        [(c.token, c.top and [token for token, _ in c.top]) for c in completion.choices],
    )


def run(llm: LLM, jobs: list[tuple[list[int], SamplingParams]], chance: random.Random | None = None):
    """Completions by (job, branch); with `chance`, jobs come over time and some are given up."""
    done: dict[tuple[int, int], Completion] = {}
    numbers: dict[int, int] = {}
    texts: dict[tuple[int, int], str] = {}
    left = list(enumerate(jobs))
    while left or llm.busy:
        for _ in range(len(left) if chance is None else chance.randrange(3)):
            if left:
                number, (prompt, params) = left.pop(0)
                numbers[llm.add(prompt, params)] = number
        if chance and numbers and chance.random() < 0.05:
            request = chance.choice(list(numbers))
            done |= {(numbers[request], c.index): c for c in llm.abort(request)}
        for delta in llm.step():
            key = numbers[delta.request_id], delta.index
            assert key not in done, "nothing follows the end"
            texts[key] = texts.get(key, "") + delta.text
            if delta.completion:
                done[key] = delta.completion
                assert texts[key] == delta.completion.text
    assert llm.scheduler.pool.held == 0
    assert llm.scheduler._host.available == llm.scheduler._host.num_blocks
    assert not llm.step()
    return done


def jobs_of(seed: int, count: int, vocabulary: int = 2048) -> list[tuple[list[int], SamplingParams]]:
    chance = random.Random(seed)
    beginning = [chance.randrange(vocabulary) for _ in range(30)]
    prompts = mixed_prompts(count, vocabulary, seed)
    return [
        (
            (beginning if chance.random() < 0.5 else []) + prompt[:60],
            SamplingParams(max_tokens=chance.randrange(1, 24), **chance.choice(WISHES)),  # type: ignore[arg-type]
        )
        for prompt in prompts
    ]


@pytest.fixture(scope="module")
def roomy() -> LLM:
    return LLM(SHIPPED)


@pytest.mark.parametrize("seed", range(6))
def test_overlapping_steps_on_random_requests_and_tight_limits_give_the_tokens_of_single_ones(
    roomy: LLM, seed: int
) -> None:
    chance = random.Random(seed)
    jobs = jobs_of(seed, count=14)
    expected = run(roomy, jobs)
    llm = LLM(
        SHIPPED,
        asynchronous=True,
        block_size=chance.choice((4, 16)),
        num_blocks=chance.choice((48, 64)),
        token_budget=chance.choice((5, 40, 512)),
        max_sequences=chance.choice((3, 9)),
        host_blocks=chance.choice((0, 30)),
        share_prefixes=chance.random() < 0.8,
    )
    found = run(llm, jobs, chance)
    assert found.keys() == expected.keys()
    aborted = 0
    for key, whole in expected.items():
        if found[key].finish_reason == "abort":
            aborted += 1
            assert found[key].tokens == whole.tokens[: len(found[key].tokens)]
        else:
            assert said(found[key]) == said(whole), jobs[key[0]][1]
    assert aborted < len(expected)


def test_overlapping_steps_that_preempt_and_find_prefixes_give_the_same_tokens(make_model: MakeModel) -> None:
    prompts = mixed_prompts(count=12, vocabulary=256, seed=13)
    prompts = [prompts[2][:40] + prompt[:90] for prompt in prompts]
    params = SamplingParams(max_tokens=20)
    expected = [c.tokens for c in LLM(make_model()).generate(prompts, params)]
    llm = LLM(make_model(), asynchronous=True, num_blocks=24, block_size=8)
    assert [c.tokens for c in llm.generate(prompts, params)] == expected
    assert llm.scheduler.counters.preemptions > 0
    again = llm.generate(prompts, params)
    assert [c.tokens for c in again] == expected
    assert any(c.cached_tokens for c in again)


def test_next_step_is_handed_over_before_the_tokens_of_the_last_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = LLM(SHIPPED, asynchronous=True)
    llm.add("def main():", SamplingParams(max_tokens=3, ignore_stop=True))
    order: list[str] = []
    forward, settle = llm.model.forward, llm._settle
    monkeypatch.setattr(llm.model, "forward", lambda *a: (order.append("forward"), forward(*a))[1])
    monkeypatch.setattr(llm, "_settle", lambda *a: (order.append("read"), settle(*a))[1])
    while llm.busy:
        llm.step()
    assert order == ["forward", "forward", "read", "forward", "read", "read"]


@pytest.mark.parametrize(
    "wish", [{"frequency_penalty": 0.5}, {"regex": "[a-z]{4}"}, {"n": 2, "temperature": 1.0}]
)
def test_a_line_whose_next_token_hangs_on_its_last_is_waited_for(wish: dict[str, object]) -> None:
    llm = LLM(SHIPPED, asynchronous=True)
    llm.add("def main():", SamplingParams(max_tokens=3, **wish))  # type: ignore[arg-type]
    assert llm.step(), "its first token is there after the first step"


def test_stop_tokens_that_no_model_has_end_nothing() -> None:
    params = SamplingParams(max_tokens=5, ignore_stop=True, stop_tokens=(-1, -2, 10**9))
    llm = LLM(SHIPPED, asynchronous=True)
    expected = LLM(SHIPPED).generate(["x", "y"], SamplingParams(max_tokens=5, ignore_stop=True))
    assert [c.tokens for c in llm.generate(["x", "y"], params)] == [c.tokens for c in expected]


def test_speculation_in_an_asynchronous_engine_gives_the_same_tokens() -> None:
    params = SamplingParams(max_tokens=24, ignore_stop=True)
    prompts = ["import os\nimport sys\nimport ", "def main():\n"]
    expected = [c.tokens for c in LLM(SHIPPED).generate(prompts, params)]
    llm = LLM(SHIPPED, asynchronous=True, speculate="ngram:3")
    assert [c.tokens for c in llm.generate(prompts, params)] == expected
    assert llm.scheduler.counters.accepted_tokens > 0


def test_a_step_that_fails_loses_no_token_of_the_step_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_tokens=6, ignore_stop=True)
    [expected] = LLM(SHIPPED).generate(["import "], params)
    llm = LLM(SHIPPED, asynchronous=True)
    llm.add("import ", params)
    llm.step()

    def fail(*arguments: object) -> torch.Tensor:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(llm.model, "forward", fail)
        with pytest.raises(MemoryError):
            llm.step()
    deltas = []
    while llm.busy:
        deltas += llm.step()
    assert [choice.token for delta in deltas for choice in delta.choices] == list(expected.tokens)
    assert deltas[-1].completion and deltas[-1].completion.tokens == expected.tokens


def test_tokens_read_by_nobody_are_forgotten_when_their_request_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = LLM(SHIPPED, asynchronous=True)
    gone = llm.add("import ", SamplingParams(max_tokens=6, ignore_stop=True))
    llm.step()
    with monkeypatch.context() as broken:
        broken.setattr(llm.model, "forward", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llm.step()
    [aborted] = llm.abort(gone)
    assert len(aborted.tokens) == 1
    assert llm.step() == []
    assert llm.scheduler.pool.held == 0
