"""What a request may ask for: branches, stop texts, guides, log probabilities, giving up, a shared beginning."""

from __future__ import annotations

import json
import re

import pytest
import torch
from engine_models import SHIPPED, MakeModel, mixed_prompts
from hypothesis import given
from hypothesis import strategies as st

from engine import LLM, Completion, Delta, SamplingParams
from engine.output import TextStream
from engine.tokenizer import Tokenizer
from hub_loader.errors import UsageError


@pytest.fixture(scope="module")
def shipped() -> LLM:
    return LLM(SHIPPED)


def run(llm: LLM) -> list[Delta]:
    deltas: list[Delta] = []
    while llm.busy:
        deltas += llm.step()
    assert llm.scheduler.pool.held == 0
    return deltas


def tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in completions]


def test_branches_draw_as_requests_of_their_own_would_and_compute_the_prompt_once(shipped: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=5, n=4, ignore_stop=True)
    before = shipped.scheduler.counters.prompt_tokens
    together = shipped.generate(["def main(arguments):\n    return "], params)
    assert [c.index for c in together] == [0, 1, 2, 3]
    assert len(set(tokens(together))) > 1
    assert shipped.scheduler.counters.prompt_tokens - before == len(together[0].prompt_tokens)
    tight = LLM(SHIPPED, num_blocks=4, block_size=16, max_sequences=4)  # branches preempt each other
    assert tokens(tight.generate([list(together[0].prompt_tokens)], params)) == tokens(together)


@pytest.mark.parametrize("options", [{}, {"host_blocks": 30}, {"share_prefixes": False}], ids=str)
@pytest.mark.parametrize("token_budget", [1, 7, 8192])
def test_tokens_when_preempted_swapped_or_found_in_the_cache_are_those_of_a_roomy_engine(
    make_model: MakeModel, options: dict[str, int], token_budget: int
) -> None:
    folder = make_model()
    beginning = mixed_prompts(count=1, vocabulary=256, seed=20)[0][:70]
    prompts = [beginning + rest[:30] for rest in mixed_prompts(count=6, vocabulary=256, seed=21)]
    params = SamplingParams(max_tokens=8, ignore_stop=True)
    expected = tokens(LLM(folder, share_prefixes=False).generate(prompts, params))
    tight = LLM(folder, num_blocks=14, block_size=8, token_budget=token_budget, **options)
    assert tokens(tight.generate(prompts, params)) == expected
    again = tight.generate(prompts, params)
    assert tokens(again) == expected
    assert any(c.cached_tokens for c in again) == ("share_prefixes" not in options)


def test_stop_text_ends_a_request_and_is_left_out_even_when_it_spans_tokens(shipped: LLM) -> None:
    params = SamplingParams(max_tokens=40, ignore_stop=True)
    prompt = "def main():\n"
    [free] = shipped.generate([prompt], params)
    stop = free.text[7:12]
    [ended] = shipped.generate([prompt], SamplingParams(max_tokens=40, ignore_stop=True, stop=(stop,)))
    assert ended.finish_reason == "stop"
    assert ended.text == free.text[: free.text.index(stop)]
    assert len(ended.tokens) < len(free.tokens)


def test_pieces_of_text_join_to_the_whole_and_no_character_is_split(make_model: MakeModel) -> None:
    llm = LLM(make_model())  # its tokens are bytes, so most of what it says is not even UTF-8
    text = "grüße, 世界 🙂"
    stream = llm.tokenizer.stream()
    pieces = [stream(token) for token in llm.tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces)
    llm.add([1, 2, 3], SamplingParams(max_tokens=50, temperature=2.0, seed=1, ignore_stop=True))
    deltas = run(llm)
    assert deltas[-1].completion is not None
    assert "".join(delta.text for delta in deltas) == deltas[-1].completion.text


def test_text_that_may_begin_a_stop_text_is_held_back(shipped: LLM) -> None:
    params = SamplingParams(max_tokens=30, ignore_stop=True)
    [free] = shipped.generate(["import "], params)
    never = free.text[:10] + "\0"
    shipped.add("import ", SamplingParams(max_tokens=30, ignore_stop=True, stop=(never,)))
    deltas = run(shipped)
    assert "".join(delta.text for delta in deltas) == free.text
    shown = ""
    for delta in deltas[:-1]:
        shown += delta.text
        assert not any(shown.endswith(never[:length]) for length in range(1, len(never)))


def test_json_schema_forces_a_document_that_follows_it(shipped: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["spam", "egg"]}, "count": {"type": "integer", "maximum": 99}},
        "required": ["name", "count"],
        "additionalProperties": False,
    }
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=11, json_schema=schema, n=3)
    for completion in shipped.generate(["x = "], params):
        document = json.loads(completion.text)
        assert set(document) == {"name", "count"}
        assert document["name"] in ("spam", "egg")
        assert completion.finish_reason == "stop"


def test_regex_forces_a_text_that_matches_it_beside_requests_that_are_free(shipped: LLM) -> None:
    guided = shipped.add("x = ", SamplingParams(max_tokens=60, regex=r"[0-9]{3}-[a-f]{4}"))
    free = shipped.add("x = ", SamplingParams(max_tokens=10, ignore_stop=True))
    done = {d.request_id: d.completion for d in run(shipped) if d.completion}
    assert re.fullmatch(r"[0-9]{3}-[a-f]{4}", done[guided].text)
    [alone] = shipped.generate(["x = "], SamplingParams(max_tokens=10, ignore_stop=True))
    assert done[free].tokens == alone.tokens


def test_guide_that_cannot_be_followed_is_refused_before_anything_is_queued(shipped: LLM) -> None:
    with pytest.raises(UsageError, match="cannot be followed"):
        shipped.add("x", SamplingParams(regex="(["))
    with pytest.raises(UsageError, match="cannot be followed"):
        shipped.add("x", SamplingParams(json_schema={"type": "no such type"}))
    assert not shipped.busy


def test_abort_gives_what_there_is_and_frees_the_blocks_of_all_branches(shipped: LLM) -> None:
    kept = shipped.add("def f(", SamplingParams(max_tokens=10, ignore_stop=True))
    gone = shipped.add("class A", SamplingParams(max_tokens=50, n=3, temperature=1.0, ignore_stop=True))
    for _ in range(4):
        shipped.step()
    aborted = shipped.abort(gone)
    assert [(c.finish_reason, len(c.tokens)) for c in aborted] == [("abort", 4)] * 3
    waiting = shipped.add("x", SamplingParams(max_tokens=5, n=2))
    assert [c.tokens for c in shipped.abort(waiting)] == [(), ()]
    assert shipped.abort(12345) == []
    assert {d.request_id for d in run(shipped)} == {kept}


def test_logprobs_come_with_every_token_and_the_greedy_one_is_the_likeliest(shipped: LLM) -> None:
    [completion] = shipped.generate(["import os"], SamplingParams(max_tokens=5, logprobs=3, ignore_stop=True))
    assert [choice.token for choice in completion.choices] == list(completion.tokens)
    for choice in completion.choices:
        assert choice.top[0] == (choice.token, choice.logprob)
        assert len(choice.top) == 3
        assert choice.logprob is not None and choice.logprob <= 0


def test_urgent_request_overtakes_those_that_wait(shipped: LLM) -> None:
    llm = LLM(SHIPPED, max_sequences=1)
    params = SamplingParams(max_tokens=4, ignore_stop=True)
    ids = [llm.add("x", params) for _ in range(3)]
    urgent = llm.add("y", SamplingParams(max_tokens=4, ignore_stop=True, priority=-1))
    order = [d.request_id for d in run(llm) if d.completion]
    assert order == [urgent, *ids]


def test_more_branches_than_places_are_refused_with_the_cure(shipped: LLM) -> None:
    with pytest.raises(UsageError, match="n=65 exceeds max_sequences=64"):
        shipped.add("x", SamplingParams(n=65))


def test_same_requests_twice_give_the_same_tokens_bit_for_bit(make_model: MakeModel) -> None:
    prompts = mixed_prompts(count=8, vocabulary=256, seed=30)
    params = SamplingParams(max_tokens=10, temperature=1.3, seed=9, top_p=0.9)
    first = LLM(make_model()).generate(prompts, params)
    torch.manual_seed(0)  # the engine draws nothing from the process's own generator
    assert tokens(LLM(make_model()).generate(prompts, params)) == tokens(first)


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
def test_generate_that_fails_or_is_interrupted_leaves_no_request_behind(
    shipped: LLM, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    params = SamplingParams(max_tokens=3, n=2, ignore_stop=True)
    expected = tokens(shipped.generate(["x"], params))

    def fail(*arguments: object) -> None:
        raise failure

    with monkeypatch.context() as broken:
        broken.setattr(shipped.model, "forward", fail)
        with pytest.raises(failure):
            shipped.generate(["x", "y"], params)
    assert not shipped.busy
    assert shipped.scheduler.pool.held == 0
    assert tokens(shipped.generate(["x"], params)) == expected


def test_stop_given_as_one_text_is_refused_and_not_taken_letter_by_letter() -> None:
    with pytest.raises(UsageError, match="expected a tuple of texts"):
        SamplingParams(stop="end")  # type: ignore[arg-type]


LETTERS = Tokenizer(SHIPPED)


@given(
    st.text(alphabet="ab", max_size=30),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=3),
)
def test_stop_texts_are_found_over_any_border_of_tokens_and_no_beginning_of_one_is_given_out(
    text: str, stops: list[str]
) -> None:
    tokens = [LETTERS.encode(letter, False) for letter in text]
    stream, shown, before = TextStream(LETTERS, stops), "", ""
    for letter, [token] in zip(text, tokens, strict=True):
        before += letter
        shown += stream.push(token)
        if stream.stopped:
            break
        held = {n for stop in stops for n in range(1, len(stop)) if before.endswith(stop[:n])}
        assert shown == before[: len(before) - max(held, default=0)]
    shown += stream.finish()
    ended = [before.index(stop) for stop in stops if stop in before]
    assert stream.stopped == bool(ended)
    assert shown == (before[: min(ended)] if ended else text) == stream.text
