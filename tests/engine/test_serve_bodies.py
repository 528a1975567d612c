"""Large bodies, and such with very many mistakes, do not keep the server from others."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
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
    tokenizer, text, took = Tokenizer(SHIPPED), "def main(): return 17\n" * 20_000, list[float]()

    def encode() -> None:
        began = time.perf_counter()
        tokenizer.encode(text)
        took.append(time.perf_counter() - began)

    def rounds(goes_on: Callable[[], bool]) -> int:
        count = 0
        while goes_on():
            count += 1
        return count

    thread = threading.Thread(target=encode)
    thread.start()
    beside = rounds(thread.is_alive)
    until = time.perf_counter() + took[0]
    alone = rounds(lambda: thread.is_alive() or time.perf_counter() < until)
    assert beside > alone / 10
