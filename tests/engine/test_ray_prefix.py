"""Which replica is asked: by the beginning of the prompt, bounded by load."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.server_ray.prefix import CHUNK, MOST_CHUNKS, Affinity, keys_of

IDLE = {"a": 0, "b": 0, "c": 0}


def completion(prompt: Any) -> tuple[bytes, ...]:
    return keys_of(json.dumps({"model": "m", "prompt": prompt}).encode())


def chat(*said: str, **more: Any) -> tuple[bytes, ...]:
    messages = [{"role": "user", "content": each} for each in said]
    return keys_of(json.dumps({"messages": messages} | more).encode())


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_keys_of_prompts_are_equal_as_far_as_whole_chunks_are(both: str, one: str, other: str) -> None:
    first, second = completion(both + one), completion(both + other)
    common = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    same = min(len(first), len(second)) if common is None else common
    assert first[:same] == second[:same]
    assert not set(first[same:]) & set(second[same:])  # what follows a difference differs, too
    assert same >= len(both) // CHUNK


def test_keys_of_a_conversation_are_kept_when_it_goes_on() -> None:
    before = chat("x" * 300)
    assert len(before) > 3
    assert chat("x" * 300, "more")[: len(before) - 1] == before[:-1]
    assert chat("x" * 300, system="other")[0] != before[0]


def test_keys_of_token_ids_and_of_the_first_of_many_prompts_are_known() -> None:
    assert completion(list(range(200)))
    assert completion(["x" * 200, "y"]) == completion("x" * 200)
    assert completion([[1] * 200, [2]]) == completion([1] * 200)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"prompt": []}', b'{"prompt": null}', b"[" * 10**5]
)
def test_keys_of_what_asks_for_no_continuation_are_none(body: bytes) -> None:
    assert keys_of(body) == ()


def test_keys_of_a_long_prompt_are_bounded() -> None:
    assert len(completion("x" * 10**6)) == MOST_CHUNKS


def test_prompt_goes_where_the_longest_beginning_of_it_went() -> None:
    affinity = Affinity()
    affinity.sent(completion("x" * 128), "b")
    affinity.sent(completion("x" * 128 + "y" * 128), "c")
    assert affinity.order(completion("x" * 128 + "z" * 64), IDLE)[0] in "bc"
    assert affinity.order(completion("x" * 128 + "y" * 128 + "z"), IDLE)[0] == "c"


def test_prompt_goes_elsewhere_when_that_replica_has_too_much_to_do() -> None:
    affinity = Affinity(slack=2)
    keys = completion("x" * 128)
    affinity.sent(keys, "b")
    assert affinity.order(keys, {"a": 1, "b": 3, "c": 2})[0] == "b"
    assert affinity.order(keys, {"a": 1, "b": 4, "c": 2}) == ["a", "c", "b"]


def test_prompt_that_is_new_goes_to_the_least_busy_and_of_those_to_the_one_asked_longest_ago() -> None:
    affinity = Affinity()
    assert affinity.order((), {"a": 1, "b": 0})[0] == "b"
    for expected in "abcabc":
        assert affinity.order((), IDLE)[0] == expected
        affinity.sent((), expected)


def test_replica_that_is_gone_is_not_chosen() -> None:
    affinity = Affinity()
    keys = completion("x" * 128)
    affinity.sent(keys, "gone")
    affinity.forget("gone")
    assert sorted(affinity.order(keys, IDLE)) == ["a", "b", "c"]
    assert affinity.order(keys, {}) == []


def test_what_was_sent_where_is_forgotten_oldest_first() -> None:
    affinity = Affinity(capacity=2)
    affinity.sent([b"1"], "c")
    affinity.sent([b"2", b"3"], "b")
    assert affinity.order([b"1"], IDLE)[0] == "a"
    assert affinity.order([b"3"], IDLE)[0] == "b"
