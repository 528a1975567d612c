"""What a client is sent of a replica that dies before, within and after the beginning of its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from engine.server_ray.held import Held

Message = MutableMapping[str, Any]
CHAT = "/v1/chat/completions"


def start(media: bytes = b"text/event-stream", status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", media)]}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def passed_on(path: str, *attempts: list[Message]) -> tuple[Held, list[Message]]:
    """What reaches the client when each replica but the last dies after its messages."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> Held:
        held = Held(send, path)
        for number, messages in enumerate(attempts):
            if number:
                held.again()
            for message in messages:
                await held.take(message, f"replica-{number}")
        return held

    return asyncio.run(run()), sent


def bodies(sent: list[Message]) -> list[bytes]:
    return [message["body"] for message in sent if message["type"] == "http.response.body"]


def test_answer_that_another_replica_gives_is_its_own_alone() -> None:
    whole = [start(b"application/json"), piece(b"{}", more=False)]
    held, sent = passed_on("/v1/completions", [start(b"application/json")], whole)
    assert held.over
    assert len(sent) == 2
    assert (b"x-khub-replica", b"replica-1") in sent[0]["headers"]


@pytest.mark.parametrize(("path", "preamble"), [(CHAT, [piece(b"role")]), ("/v1/completions", [])])
def test_stream_is_begun_with_its_first_content(path: str, preamble: list[Message]) -> None:
    held, sent = passed_on(path, [start(), *preamble])
    assert (held.began, held.content, sent) == (False, False, [])
    held, sent = passed_on(path, [start(), *preamble], [start(), *preamble, piece(b"text")])
    assert held.content
    assert bodies(sent) == [each["body"] for each in preamble] + [b"text"]


def test_sign_of_life_begins_a_stream_and_leaves_its_content_to_whoever_comes() -> None:
    held, sent = passed_on(CHAT, [start(), piece(b"role-0"), piece(b": still here\n\n")])
    assert (held.began, held.content) == (True, False)
    held, sent = passed_on(
        CHAT,
        [start(), piece(b"role-0"), piece(b": still here\n\n")],
        [start(), piece(b"role-1"), piece(b"text"), piece(b"", more=False)],
    )
    assert bodies(sent) == [b": still here\n\n", b"role-1", b"text", b""]
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert held.over


def test_refusal_by_the_next_replica_after_a_sign_of_life_is_the_streams_last_event() -> None:
    error = json.dumps({"error": {"message": "no"}}).encode()
    held, sent = passed_on(
        CHAT,
        [start(), piece(b": still here\n\n")],
        [start(b"application/json", 429), piece(error[:5]), piece(error[5:], more=False)],
    )
    assert bodies(sent)[1] == b'data: {"error":{"message":"no"}}\n\n'
    assert held.over
