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
        made["max_tokens"] = min(made["max_tokens"], 40)  # or one request is minutes of work
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
    """Sends requests of every kind until told to stop.

    It keeps the statuses it was answered with, how long the slowest took, and what was not answered.
    """

    def __init__(self, server: Server, seed: int, until: float) -> None:
        super().__init__()
        self.server, self.chance, self.until = server, random.Random(seed), until
        self.statuses: list[int] = []
        self.slowest = 0.0
        self.unanswered: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=ANSWER_SECONDS) as client:
            while time.monotonic() < self.until:
                began = time.monotonic()
                try:
                    self._send(client, self.chance.choice(PATHS))
                except httpx.HTTPError as error:
                    self.unanswered.append(f"{type(error).__name__}: {error}")
                self.slowest = max(self.slowest, time.monotonic() - began)

    def _send(self, client: httpx.Client, path: str) -> None:
        chance, kind = self.chance, self.chance.random()
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


ANSWER_SECONDS = 240.0
"""Of patience with an answer: a dozen clients at once, on a busy machine."""


def fuzz(server: Server, seconds: float, clients: int, seed: int) -> list[int]:
    """Let clients loose; the statuses that they were answered with, once nothing is left of them."""
    started = [Client(server, seed * 1000 + n, time.monotonic() + seconds) for n in range(clients)]
    for client in started:
        client.start()
    for client in started:
        client.join(timeout=seconds + 2 * ANSWER_SECONDS)
        assert not client.is_alive(), "a request was never answered"
        assert not client.unanswered
    server.wait_until(server.idle, "no block is held")
    return [status for client in started for status in client.statuses]


def check(server: Server, statuses: list[int]) -> None:
    assert 500 not in statuses, server.errors.read_text()
    assert {200, 400} <= set(statuses)
    assert "Traceback" not in server.errors.read_text(), server.errors.read_text()
    answer = server.openai().completions.create(model=NAME, prompt="def main(", max_tokens=4, temperature=0)
    assert answer.choices[0].text


FLAT_MIB = 4.0
"""What arenas may add between rounds of the same length."""
# Set, these thresholds stay: by itself glibc keeps more and more of what large bodies took, or less, by tens of MiB.
GIVEN_BACK = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}


@pytest.mark.slow
def test_fuzzed_server_answers_everybody_and_leaks_no_block(
    start_server: StartServer, chat_model: Any
) -> None:
    server = start_server(chat_model, "--num-blocks", "80", "--queue", "200")
    check(server, fuzz(server, 6, 6, seed=1))
    assert server.stop() == 0


@pytest.mark.heavy
def test_server_fuzzed_for_minutes_keeps_its_memory(start_server: StartServer, chat_model: Any) -> None:
    """Of five rounds the first fills caches and arenas."""
    server = start_server(chat_model, "--num-blocks", "80", "--queue", "200", **GIVEN_BACK)
    resident, answered = [], []
    for seed in range(5):
        statuses = fuzz(server, 48, 12, seed=2 + seed)
        check(server, statuses)
        resident.append(resident_bytes(server.process.pid) / (1 << 20))
        answered.append(len(statuses))
        print(f"round {seed + 1}: {answered[-1]} answers, {resident[-1]:.1f} MiB resident")
    growth = min(resident[3:]) - max(resident[1:3])
    print(f"from rounds 2 and 3 to rounds 4 and 5: {growth:+.1f} MiB for {sum(answered[3:])} answers")
    assert growth < FLAT_MIB
    assert server.stop() == 0
