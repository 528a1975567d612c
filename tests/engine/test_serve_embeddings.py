"""/v1/embeddings of a real server against the hidden states of transformers."""

from __future__ import annotations

import httpx
import openai
import pytest
import torch
from engine_models import SHIPPED, MakeModel
from serving import NAME, Server
from transformers import AutoModelForCausalLM

from engine import LLM
from engine.embed import embed
from engine.tokenizer import Tokenizer

TEXTS = ["def main():", "x", "import os\n" * 30]


def by_transformers(folder: object, prompts: list[list[int]], pooling: str) -> torch.Tensor:
    """[prompts, hidden size], pooled and of length 1."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pooled = []
    for prompt in prompts:
        with torch.inference_mode():
            states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
        pooled.append(states.mean(dim=0) if pooling == "mean" else states[-1])
    return torch.nn.functional.normalize(torch.stack(pooled), dim=-1)


def test_embeddings_are_the_mean_hidden_states_of_transformers(server: Server) -> None:
    tokenizer = Tokenizer(SHIPPED)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    expected = by_transformers(SHIPPED, prompts, "mean")
    answer = server.openai().embeddings.create(model=NAME, input=TEXTS)  # the client asks for base64
    torch.testing.assert_close(
        torch.tensor([each.embedding for each in answer.data]), expected, atol=1e-4, rtol=0
    )
    assert answer.usage.prompt_tokens == sum(map(len, prompts))
    floats = server.openai().embeddings.create(model=NAME, input=prompts[0], encoding_format="float")
    torch.testing.assert_close(torch.tensor(floats.data[0].embedding), expected[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("budget", [1, 7, 512])
def test_embedding_is_the_same_however_it_is_cut_into_steps(
    make_model: MakeModel, pooling: str, budget: int
) -> None:
    folder = make_model()
    prompts = [[1, 2, 3], list(range(40)), [9], list(range(100, 120))]
    steps = embed(LLM(folder, token_budget=budget), prompts, pooling)  # type: ignore[arg-type]
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found = done.value
            break
    torch.testing.assert_close(found, by_transformers(folder, prompts, pooling), atol=1e-4, rtol=0)


def test_input_that_cannot_be_embedded_is_refused_with_the_reason(server: Server) -> None:
    client = server.openai()
    for wrong, words in (
        ({"input": []}, "empty"),
        ({"input": ["x", ""]}, "empty"),
        ({"input": [[4000]]}, "above 2047"),
        ({"input": "x = 1\n" * 2000}, "limit is 1024"),
        ({"input": "x", "dimensions": 3}, "192 dimensions"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.embeddings.create(**({"model": NAME} | wrong))  # type: ignore[arg-type]


def test_embeddings_whose_client_vanishes_are_given_up_and_the_next_are_answered(server: Server) -> None:
    many = {"model": NAME, "input": [[i % 2000] * 1000 for i in range(1000)]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json=many, timeout=httpx.Timeout(60, read=0.5))
    assert server.openai().embeddings.create(model=NAME, input="x").data
