"""A request that cannot go on ends with its own error: logits that are no numbers, guides that fail."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_models import SHIPPED, MakeModel

from engine import LLM, Completion, SamplingParams
from engine.batch import Batch
from engine.embed import embed
from engine.guide import TokenGuide
from engine.kernel_table import Binding
from engine.server.errors import answer_to
from engine.server.worker import Worker
from hub_loader.cli import main
from hub_loader.errors import ComputeError, UsageError

LONG = SamplingParams(max_tokens=6, ignore_stop=True)
HIT = 17
"""A token after which the model is broken."""


def break_rows(llm: LLM, patch: pytest.MonkeyPatch, value: float, token: int = HIT) -> None:
    """Where `token` is computed, keys, values and logits are `value`, as a broken kernel would leave them."""
    hidden = llm.model.hidden

    def broken(batch: Batch, cache: Any) -> torch.Tensor:
        found: torch.Tensor = hidden(batch, cache)
        rows = (batch.tokens == token).nonzero().flatten()
        for held in (tensor for layer in cache for tensor in layer):
            held.view(-1, *held.shape[2:])[batch.slot_mapping[rows]] = value
        found = found.clone()
        found[rows] = value
        return found

    patch.setattr(llm.model, "hidden", broken)


def run(llm: LLM) -> dict[tuple[int, int], Completion]:
    done = {}
    while llm.busy:
        done |= {(d.request_id, d.index): d.completion for d in llm.step() if d.completion}
    assert llm.scheduler.pool.held == 0
    return done


OVERLAPS = pytest.mark.parametrize("overlaps", [False, True], ids=["one by one", "overlapping"])


@OVERLAPS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_request_whose_logits_are_not_finite_ends_with_an_error_and_the_others_are_served(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, value: float, temperature: float, overlaps: bool
) -> None:
    llm = LLM(make_model(), asynchronous=overlaps)
    params = replace(LONG, temperature=temperature, seed=3)
    prompts = [[1, 2, 3], [4, 5, HIT], [6, 7]]
    expected = llm.generate(prompts, params)
    break_rows(llm, monkeypatch, value)
    found = llm.generate(prompts, params)
    assert [c.tokens for c in found[::2]] == [c.tokens for c in expected[::2]]
    assert [c.finish_reason for c in found] == ["length", "error", "length"]
    assert found[1].tokens == () and found[1].text == ""
    assert isinstance(found[1].error, ComputeError) and found[0].error is None
    assert "every slot is plain torch" in str(found[1].error)
    assert llm.scheduler.pool.held == 0 and not llm.busy


def test_error_names_the_kernels_that_may_have_computed_what_is_not_finite(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LLM(make_model())
    theirs = [Binding(slot, "org/fast", "v3", "torch-cpu") for slot in ("attention", "kv_write")]
    llm.kernels = replace(llm.kernels, bindings=(*theirs, *llm.kernels.bindings[2:]))
    break_rows(llm, monkeypatch, float("nan"))
    with caplog.at_level(logging.ERROR):
        [found] = llm.generate([[HIT]], LONG)
    assert "org/fast v3 (torch-cpu) in attention, kv_write" in str(found.error)
    assert str(found.error) in caplog.text


@OVERLAPS
def test_all_continuations_of_a_prompt_end_when_its_logits_are_not_finite(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    llm = LLM(make_model(), max_sequences=8, asynchronous=overlaps)
    break_rows(llm, monkeypatch, float("nan"))
    broken = llm.add([HIT], replace(LONG, n=3, temperature=1.0, seed=1))
    whole = llm.add([1], replace(LONG, n=3, temperature=1.0, seed=1))  # none of them says HIT
    done = run(llm)
    assert [done[broken, n].finish_reason for n in range(3)] == ["error"] * 3
    assert [done[whole, n].finish_reason for n in range(3)] == ["length"] * 3


@OVERLAPS
def test_what_a_failed_request_left_in_the_cache_is_shared_with_nobody(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    llm = LLM(make_model(), block_size=4, asynchronous=overlaps)
    prompt = [1, 2, 3, 4, 5, 6, 7, HIT]
    with monkeypatch.context() as patch:
        break_rows(llm, patch, float("nan"))
        [found] = llm.generate([prompt], replace(LONG, max_tokens=1))  # its only token is also its last
        assert found.finish_reason == "error"
    [again] = llm.generate([[*prompt, 9]], LONG)
    assert again.finish_reason == "length" and again.cached_tokens == 0
    assert again.tokens == LLM(make_model()).generate([[*prompt, 9]], LONG)[0].tokens


@OVERLAPS
def test_request_that_fails_after_some_tokens_keeps_them_and_its_neighbours_keep_theirs(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    params = replace(LONG, max_tokens=12)
    prompts = [[4, 5, 6], [1, 2, 3], [6, 7]]
    expected = LLM(make_model()).generate(prompts, params)
    last = expected[0].tokens
    place = next(n for n, token in enumerate(last) if all(token not in c.tokens for c in expected[1:]))
    llm = LLM(make_model(), block_size=4, asynchronous=overlaps)
    break_rows(llm, monkeypatch, float("nan"), last[place])
    found = llm.generate(prompts, params)
    assert [c.tokens for c in found[1:]] == [c.tokens for c in expected[1:]]
    assert found[0].finish_reason == "error" and found[0].tokens == last[: last.index(last[place]) + 1]
    assert isinstance(found[0].error, ComputeError)
    assert llm.scheduler.pool.held == 0 and not llm.busy


def test_accepted_guesses_whose_logits_are_not_finite_end_the_line_and_are_not_kept(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(make_model(), speculate="ngram:4", block_size=4)
    prompt = [1, 2, 3, 4] * 4
    [expected] = llm.generate([prompt], replace(LONG, max_tokens=30))
    hit = expected.tokens[-1]
    before = expected.tokens.index(hit)
    fresh = LLM(make_model(), speculate="ngram:4", block_size=4)
    break_rows(fresh, monkeypatch, float("nan"), hit)
    [found] = fresh.generate([prompt], replace(LONG, max_tokens=30))
    assert found.finish_reason == ("error" if before < 29 else "length")
    assert found.tokens == expected.tokens[: before + 1]
    assert fresh.scheduler.counters.accepted_tokens >= 0


class Stumbling(TokenGuide):
    """A guide that fails in one of its calls, after so many tokens."""

    def __init__(self, inner: TokenGuide, call: str, after: int, kind: type[Exception]) -> None:
        super().__init__(inner._matcher)
        self.call, self.after, self.kind = call, after, kind

    def copy(self) -> TokenGuide:
        return Stumbling(super().copy(), self.call, self.after, self.kind)

    def _stumble(self, call: str) -> None:
        if self.after <= 0 and call == self.call:
            raise self.kind("the grammar has become too large")

    def rejected(self, vocabulary: int) -> torch.Tensor:
        self._stumble("rejected")
        return super().rejected(vocabulary)

    def advance(self, token: int) -> None:
        self._stumble("advance")
        self.after -= 1
        super().advance(token)

    @property
    def done(self) -> bool:
        self._stumble("done")
        return super().done


@pytest.mark.parametrize("speculate", [None, "ngram:3"])
@pytest.mark.parametrize("call", ["rejected", "advance", "done"])
@pytest.mark.parametrize("after", [0, 3])
def test_guide_that_fails_inside_a_step_ends_its_own_request_alone(
    call: str, after: int, speculate: str | None
) -> None:
    llm = LLM(SHIPPED, speculate=speculate)
    prompt = llm.tokenizer.encode("x = ")
    [expected] = llm.generate([prompt], replace(LONG, max_tokens=20))
    params = replace(LONG, max_tokens=20, regex="[ab]{15}")
    inner = llm.guide(params)
    assert inner is not None
    guided = llm.add(prompt, params, Stumbling(inner, call, after, RuntimeError))
    free = llm.add(prompt, replace(LONG, max_tokens=20))
    healthy = llm.add(prompt, params)
    done = run(llm)
    assert done[free, 0].tokens == expected.tokens
    assert set(done[healthy, 0].text) <= {"a", "b"} and done[healthy, 0].error is None
    ended = done[guided, 0]
    assert ended.finish_reason == "error" and isinstance(ended.error, UsageError)
    assert "too large" in str(ended.error) and set(ended.text) <= {"a", "b"}


def test_guide_that_fails_for_one_continuation_leaves_the_other_ones_alone() -> None:
    llm = LLM(SHIPPED)
    params = replace(LONG, max_tokens=12, n=3, temperature=1.0, seed=4, regex="[abc]{10}")
    inner = llm.guide(params)
    assert inner is not None
    request = llm.add("x = ", params, inner)
    line = llm._lines[request, 1]
    line.draws.guide = Stumbling(inner.copy(), "advance", 0, UsageError)
    done = run(llm)
    assert [done[request, n].finish_reason for n in range(3)] == ["stop", "error", "stop"]


def test_grammar_that_gives_up_on_the_way_is_an_error_and_not_the_end_of_the_text() -> None:
    llm = LLM(SHIPPED)
    params = replace(LONG, max_tokens=20, regex="[ab]{15}")
    inner = llm.guide(params)
    assert inner is not None
    inner._matcher.consume_token(llm.tokenizer.encode("z", False)[0])  # its error says that it has ended, too
    with pytest.raises(UsageError, match="cannot be followed") as caught:
        inner.rejected(llm.config.vocab_size)
    assert "\n" not in str(caught.value)
    request = llm.add("x = ", params, inner)
    assert run(llm)[request, 0].finish_reason == "error"


@OVERLAPS
def test_server_answers_a_request_that_failed_alone(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    llm = LLM(make_model(), asynchronous=overlaps)
    break_rows(llm, monkeypatch, float("nan"))

    async def play() -> None:
        worker = Worker(llm)
        worker.start()
        try:
            jobs = [worker.submit(p, LONG) for p in ([[1, 2]], [[HIT]], [[3], [HIT], [4]], [[5]])]
            answers = await asyncio.gather(*(job.finished() for job in jobs), return_exceptions=True)
            assert isinstance(answers[0], list) and isinstance(answers[3], list)
            for each in answers[1:3]:
                assert isinstance(each, ComputeError)
                answer = answer_to(each)
                assert answer is not None and answer.status == 500 and "not finite" in answer.message
            assert not worker.broken and not worker.jobs and worker.waiting == 0
            assert worker._unfinished == 0 and not worker._requests and not worker._held
            [vectors] = await asyncio.gather(worker.embed([[HIT]], "mean"), return_exceptions=True)
            assert isinstance(vectors, ComputeError)
        finally:
            await worker.stop()

    asyncio.run(play())
    assert llm.scheduler.pool.held == 0


def test_vector_that_is_not_finite_is_refused(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(make_model())
    break_rows(llm, monkeypatch, float("nan"))
    with pytest.raises(ComputeError, match="not finite"):
        list(embed(llm, [[1], [HIT]]))


def test_generate_prints_what_there_is_and_exits_with_the_error_of_what_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = LLM.step

    def step(llm: LLM) -> Any:
        if not hasattr(llm, "broken"):
            llm.broken = True  # type: ignore[attr-defined]
            break_rows(llm, monkeypatch, float("nan"), llm.tokenizer.encode(" @", False)[-1])
        return forward(llm)

    monkeypatch.setattr(LLM, "step", step)
    arguments = ["engine", "generate", "--model", str(SHIPPED), "--max-tokens", "3", "--json"]
    assert main([*arguments, "--prompt", "import os", "--prompt", "x = @"]) == ComputeError.exit_code
    printed = capsys.readouterr()
    reasons = [each["finish_reason"] for each in json.loads(printed.out)["completions"]]
    assert "khub: request 1: the logits are not finite" in printed.err
    assert reasons[1] == "error" and reasons[0] != "error"
