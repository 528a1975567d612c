"""Large bodies, many at once, and such with very many mistakes, do not keep the server from others."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from engine_models import SHIPPED
from pydantic import ValidationError
from serving import NAME, Server, StartServer

from engine.server.bodies import Bodies
from engine.server.embeddings import EmbeddingBody
from engine.server.errors import RequestError, answer_to
from engine.server.options import add_arguments, options_of
from engine.server.schema import ChatBody, CompletionBody, Strict
from engine.tokenizer import Tokenizer
from hub_loader.errors import UsageError

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


def upload(server: Server, declared: int, sent: bytes) -> socket.socket:
    """A connection that has sent the beginning of a body."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {declared}"
    connection.sendall(f"{head}\r\n\r\n".encode() + sent)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    answer = b""
    with connection:
        while not answer.endswith(b"}") and (piece := connection.recv(4096)):
            answer += piece
    return answer


def test_large_bodies_beyond_the_room_for_all_are_sent_away_and_small_ones_are_served(
    start_server: StartServer,
) -> None:
    server = start_server(SHIPPED, "--max-body", "1", "--max-bodies", "2")
    whole = json.dumps({"model": NAME, "prompt": "x" * (900 << 10)}).encode()
    held = upload(server, len(whole), whole[:-1])  # slow: all of it but the last byte
    # Meanwhile the server reads it: were both read in turns, either might be the one that is too much.
    server.openai().completions.create(model=NAME, prompt="import", max_tokens=8)
    late = upload(server, len(whole), whole[:-1])
    refused = answer_of(late)
    assert b" 429 " in refused and b"retry-after: 1" in refused.lower() and b"together" in refused
    for _ in range(3):
        answer = server.openai().completions.create(model=NAME, prompt="import", max_tokens=2)
        assert answer.usage is not None and answer.usage.completion_tokens == 2
    held.sendall(whole[-1:])
    assert b"context_length_exceeded" in answer_of(held)
    again = upload(server, len(whole), whole)
    assert b"context_length_exceeded" in answer_of(again)
    assert server.metric("khub_engine_refusals_total", status="429") == 1
    assert server.stop() == 0


def test_room_for_bodies_that_holds_no_large_one_is_refused_with_the_cure() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    add_arguments(parser)
    args = parser.parse_args(["m", "--max-body", "60", "--max-bodies", "64"])
    with pytest.raises(UsageError, match="give it 80 or more"):
        options_of(args)


def test_bodies_of_requests_that_are_over_take_no_room() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        if scope["fails"]:
            raise ValueError

    async def play() -> None:
        bodies = Bodies(app, 100)
        for fails in (False, True, False):
            pieces = iter([{"body": b"x" * 40, "more_body": True}, {"body": b"x" * 60, "more_body": False}])

            async def receive(pieces: Any = pieces) -> Any:
                return {"type": "http.request", **next(pieces)}

            with contextlib.suppress(ValueError):
                await bodies({"type": "http", "fails": fails}, receive, receive)
            assert bodies.held == 0

        async def endless() -> Any:
            return {"type": "http.request", "body": b"x" * 30, "more_body": True}

        with pytest.raises(RequestError, match="together"):
            await bodies({"type": "http", "fails": False}, endless, endless)
        assert bodies.held == 0

    asyncio.run(play())
