"""A real server among malformed, huge, vanishing and concurrent clients: it stays up, and forgets them all.

A few seconds of it in every run, minutes with the heavy tests.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from serving import NAME, Server, StartServer, resident_bytes

PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/messages/count_tokens",
)
VALUES: list[Any] = [
    None, True, 0, -1, 1, 2, 3, 7, 10**30, -(10**30), 0.0, 1e-45, 1e308, "", "x", "def main():", "\u0000", "é" * 300,
    [], [[]], [1, 2, 3], ["a", "b"], {}, {"type": "text"}, [{"role": "user", "content": "x"}], {"5": 100},
]  # fmt: skip
FIELDS = (
    "model", "prompt", "input", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop",
    "stream", "logprobs", "top_logprobs", "logit_bias", "repetition_penalty", "presence_penalty", "structured_outputs",
    "tools", "tool_choice", "response_format", "stop_token_ids", "priority", "system", "echo", "thinking",
)  # fmt: skip
GUIDES: list[Any] = [
    {"regex": "[ab]{1,5}"},
    {"regex": "("},
    {"json": {"type": "object"}},
    {"json": "{"},
    {"regex": ""},
]


def body(chance: random.Random) -> dict[str, Any]:
    """Mostly a request that can be answered, with up to three fields that may not."""
    made: dict[str, Any] = {"model": NAME, "max_tokens": chance.choice([1, 5, 40, 300])}
    text = chance.choice(["x", "def main():\n" * chance.randrange(1, 200), "import os\n"])
    made |= chance.choice(
        [{"prompt": text}, {"messages": [{"role": "user", "content": text}]}, {"input": text}]
    )
    made["stream"] = chance.random() < 0.5
    if chance.random() < 0.2:
        made["structured_outputs"] = chance.choice(GUIDES)
    if chance.random() < 0.2:
        made |= {"temperature": chance.choice([0, 1e-30, 50]), "n": chance.choice([1, 3, 64])}
    for _ in range(chance.choice([0, 0, 1, 3])):
        made[chance.choice(FIELDS)] = chance.choice(VALUES)
    return made


def raw(chance: random.Random, content: bytes, path: str) -> bytes:
    """A request as bytes, some of them wrong."""
    length = len(content) + chance.choice([0, 0, 0, 5, -5, 10**12])
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    message = bytearray(head.encode() + content)
    for _ in range(chance.choice([0, 0, 1, 20])):
        message[chance.randrange(len(message))] = chance.randrange(256)
    return bytes(message[: chance.choice([len(message), len(message), chance.randrange(len(message) + 1)])])


class Client(threading.Thread):
    """Sends requests of every kind until told to stop; keeps the statuses it was answered with."""

    def __init__(self, server: Server, seed: int, until: float) -> None:
        super().__init__()
        self.server, self.chance, self.until = server, random.Random(seed), until
        self.statuses: list[int] = []

    def run(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=120) as client:
            while time.monotonic() < self.until:
                chance, path = self.chance, self.chance.choice(PATHS)
                kind = chance.random()
                if kind < 0.35:
                    self._bytes(raw(chance, json.dumps(body(chance)).encode(), path))
                elif kind < 0.5:
                    self._half(client, path)
                elif kind < 0.53:
                    self.statuses.append(client.post(path, json={"prompt": "x" * (9 << 20)}).status_code)
                else:
                    self.statuses.append(client.post(path, json=body(chance)).status_code)

    def _bytes(self, message: bytes) -> None:
        port = int(self.server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(message)
            connection.settimeout(self.chance.choice([0.001, 0.05]))
            try:
                connection.recv(100)
            except OSError:
                return

    def _half(self, client: httpx.Client, path: str) -> None:
        """Read the beginning of a stream, and go."""
        with client.stream("POST", path, json=body(self.chance) | {"stream": True}) as answer:
            self.statuses.append(answer.status_code)
            for _ in zip(range(self.chance.randrange(3)), answer.iter_raw(), strict=False):
                continue


def fuzz(server: Server, seconds: float, clients: int, seed: int) -> list[int]:
    """Let clients loose; the statuses that they were answered with, once nothing is left of them."""
    started = [Client(server, seed * 1000 + n, time.monotonic() + seconds) for n in range(clients)]
    for client in started:
        client.start()
    for client in started:
        client.join(timeout=300)
        assert not client.is_alive(), "a request was never answered"
    server.wait_until(server.idle, "no block is held")
    return [status for client in started for status in client.statuses]


def check(server: Server, statuses: list[int]) -> None:
    assert 500 not in statuses, server.errors.read_text()
    assert {200, 400} <= set(statuses)
    assert "Traceback" not in server.errors.read_text(), server.errors.read_text()
    answer = server.openai().completions.create(model=NAME, prompt="def main(", max_tokens=4, temperature=0)
    assert answer.choices[0].text


@pytest.mark.slow
def test_fuzzed_server_answers_everybody_and_leaks_no_block(
    start_server: StartServer, chat_model: Any
) -> None:
    server = start_server(chat_model, "--num-blocks", "80", "--queue", "200")
    check(server, fuzz(server, 6, 6, seed=1))
    assert server.stop() == 0


@pytest.mark.heavy
def test_server_fuzzed_for_minutes_keeps_its_memory(start_server: StartServer, chat_model: Any) -> None:
    server = start_server(chat_model, "--num-blocks", "80", "--queue", "200")
    check(server, fuzz(server, 60, 12, seed=2))  # caches, threads and arenas are there from now on
    before = resident_bytes(server.process.pid)
    check(server, fuzz(server, 180, 12, seed=3))
    assert resident_bytes(server.process.pid) < before * 1.1 + (32 << 20)
    assert server.stop() == 0
