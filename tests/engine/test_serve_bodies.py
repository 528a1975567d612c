"""Large bodies, and such with very many mistakes, do not keep the server from others."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from engine_models import SHIPPED
from pydantic import ValidationError

from engine.server.embeddings import EmbeddingBody
from engine.server.errors import answer_to
from engine.server.schema import ChatBody, CompletionBody, Strict
from engine.tokenizer import Tokenizer

MANY = 5000


def complaint(kind: type[Strict], body: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps(body))
    return caught.value


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionBody, {"model": "x", "prompt": [1.5] * MANY}),
        (CompletionBody, {"model": "x", "prompt": [[1.5] * MANY] * 3}),
        (EmbeddingBody, {"model": "x", "input": [1.5] * MANY}),
        (ChatBody, {"model": "x", "messages": [{"role": "user", "content": [{}] * MANY}]}),
        (ChatBody, {"model": "x", "messages": [{}] * MANY}),
    ],
)
def test_list_of_wrong_items_is_read_to_the_first(kind: type[Strict], body: dict[str, Any]) -> None:
    error = complaint(kind, body)
    assert error.error_count() < 10
    answer = answer_to(error)
    assert answer is not None and ".0" in (answer.param or "")


def test_body_of_many_unknown_parameters_is_refused_with_their_number() -> None:
    error = complaint(CompletionBody, {"model": "x", "prompt": "x"} | {f"p{n}": n for n in range(MANY)})
    answer = answer_to(error)
    assert answer is not None and f"{MANY} values or parameters" in answer.message


def test_tokenizer_lets_other_threads_go_on() -> None:
    tokenizer, seen, ticks = Tokenizer(SHIPPED), list[int](), 0

    def encode() -> None:
        seen.append(ticks)
        tokenizer.encode("def main(): return 17\n" * 10_000)
        seen.append(ticks)

    thread = threading.Thread(target=encode)
    thread.start()
    while thread.is_alive():
        ticks += 1
    assert seen[1] - seen[0] > 1000
