"""A head that does not come in time ends its connection; a request under way, or the next one, has its own time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from engine.server.heads import prompt_heads

PATIENCE = 0.5
SLOW = 3 * PATIENCE


async def app(scope: dict, receive: object, send: object) -> None:
    if scope["path"] == "/slow":
        import asyncio

        await asyncio.sleep(SLOW)
    await PlainTextResponse("here")(scope, receive, send)


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=prompt_heads(PATIENCE), log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHo"])
def test_a_connection_without_a_whole_head_is_closed(address: tuple[str, int], head: bytes) -> None:
    with socket.create_connection(address) as client:
        client.settimeout(30)
        client.sendall(head)
        assert client.recv(100) == b""


def test_a_head_that_drips_is_not_given_more_time_with_each_byte(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as client:
        client.settimeout(PATIENCE / 10)
        for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000:
            try:
                client.sendall(bytes([byte]))
                if client.recv(100) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    pytest.fail("it was never closed")


def test_a_request_that_is_computed_for_longer_is_answered_and_so_is_the_next(
    address: tuple[str, int],
) -> None:
    with socket.create_connection(address) as client:
        client.settimeout(30)
        for path in ("/slow", "/"):
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            answer = b""
            while not answer.endswith(b"here"):
                answer += client.recv(1000)
            time.sleep(2 * PATIENCE)  # idle between requests: that is the keep-alive timeout's time
