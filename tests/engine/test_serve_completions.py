"""/v1/completions and /v1/models of a real server, asked by the stock `openai` client."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from engine_models import SHIPPED, greedy_by_transformers
from serving import NAME, Server

from engine.tokenizer import Tokenizer

PROMPTS = ["def main():", "import os\n", "class Handler:", "for i in range(", "try:\n"]


def expected(prompts: list[str], tokens: int) -> list[str]:
    """What transformers says, greedily."""
    tokenizer = Tokenizer(SHIPPED)
    made = greedy_by_transformers(SHIPPED, [tokenizer.encode(prompt) for prompt in prompts], tokens)
    return [tokenizer.decode(answer) for answer in made]


def test_models_are_the_one_that_is_served(server: Server) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-9")
    assert error.value.code == "model_not_found"


def test_completion_with_temperature_0_is_the_text_of_transformers(server: Server) -> None:
    answer = server.openai().completions.create(
        model=NAME, prompt=PROMPTS, max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
    )
    assert [choice.text for choice in answer.choices] == expected(PROMPTS, 12)
    assert [choice.index for choice in answer.choices] == list(range(len(PROMPTS)))
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    tokenizer = Tokenizer(SHIPPED)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in PROMPTS)
    assert answer.usage.completion_tokens == 12 * len(PROMPTS)


def test_completion_streamed_is_the_text_of_the_whole_one_with_usage_at_the_end(server: Server) -> None:
    client = server.openai()
    asked: Any = {"model": NAME, "prompt": "def main(", "max_tokens": 24, "temperature": 0, "n": 2}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for index in (0, 1):
        pieces = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert len(pieces) > 4
        assert "".join(piece.text for piece in pieces) == whole.choices[index].text
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [
            whole.choices[index].finish_reason
        ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_at_once_are_each_what_they_are_alone(server: Server) -> None:
    client = server.openai()

    def ask(prompt: str) -> str:
        return (
            client.completions.create(model=NAME, prompt=prompt, max_tokens=16, temperature=0).choices[0].text
        )

    alone = [ask(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(ask, PROMPTS * 8)) == alone * 8


def test_completion_of_token_ids_echoed_seeded_stopped_and_with_logprobs(server: Server) -> None:
    client, tokens = server.openai(), Tokenizer(SHIPPED).encode("def main(")
    answer = client.completions.create(
        model=NAME, prompt=tokens, max_tokens=40, temperature=0, stop=["\n"], echo=True
    )
    assert answer.choices[0].text.startswith("def main(")
    assert "\n" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"
    drawn = [
        client.completions.create(model=NAME, prompt=tokens, max_tokens=8, temperature=1, seed=seed)
        for seed in (5, 5, 6)
    ]
    texts = [each.choices[0].text for each in drawn]
    assert texts[0] == texts[1] != texts[2]
    reported = client.completions.create(model=NAME, prompt=tokens, max_tokens=4, temperature=0, logprobs=2)
    logprobs = reported.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == reported.choices[0].text
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    assert all(value <= 0 for value in logprobs.token_logprobs or ())


def test_completion_guided_by_a_regex_matches_it(server: Server) -> None:
    answer = server.openai().completions.create(
        model=NAME,
        prompt="x = ",
        max_tokens=30,
        extra_body={"structured_outputs": {"regex": "[0-9]{3}-[a-c]{2}"}},
    )
    assert len(answer.choices[0].text) == 6
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("wrong", "status", "param", "words"),
    [
        ({"model": "other"}, 404, "model", "'other' is not served here"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"temperature": float("inf")}, 400, "temperature", "finite"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"n": 65}, 400, "n", "max_sequences"),
        ({"max_tokens": "12"}, 400, "max_tokens", "valid integer"),
        ({"max_tokens": 5000}, 400, "messages", "longer than this server's limit of 1024 tokens"),
        ({"prompt": ""}, 400, "prompt", "empty"),
        ({"prompt": []}, 400, "prompt", "empty"),
        ({"prompt": "x = 1\n" * 2000}, 400, "messages", "this server's limit is 1023"),
        ({"prompt": [5, 2048]}, 400, "prompt", "above 2047"),
        ({"logit_bias": {"x": 1}}, 400, None, "name them by number"),
        ({"logit_bias": {"2048": 1}}, 400, None, "2047"),
        ({"best_of": 3}, 400, None, "best_of"),
        ({"tempreature": 1}, 400, "tempreature", "does not know the parameter tempreature"),
        ({"structured_outputs": {"regex": "("}}, 400, None, "cannot be followed"),
        ({"stream_options": {"include_usage": True}}, 400, None, "only for stream=true"),
    ],
)
def test_completion_that_cannot_be_is_refused_with_the_reason(
    server: Server, wrong: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    body = {"model": NAME, "prompt": "x", "max_tokens": 4} | wrong
    answer = httpx.post(
        f"{server.url}/v1/completions",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"", {}, 400, "not JSON"),
        (b"[" * 100_000, {}, 400, "not JSON"),
        (b"[1]", {}, 400, "object"),
        (b"{}", {}, 400, "required"),
        (b'{"model": "\xff"}', {}, 400, "not JSON"),
        (b'{"model": "\\ud800"}', {}, 400, "not JSON"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b" " * (9 << 20), {}, 413, "longer than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_body_that_is_no_request_is_refused(
    server: Server, content: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = httpx.post(
        f"{server.url}/v1/completions",
        content=content,
        headers={"Content-Type": "application/json"} | headers,
    )
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_address_or_method_that_is_not_served_is_answered_as_an_error_of_its_api(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert httpx.post(f"{server.url}/v1/messages/batches").json()["error"]["type"] == "not_found_error"
