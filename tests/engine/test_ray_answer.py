"""What a replica yields of an application's answer, and what becomes of a request that is no such thing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="pip install 'kernel-hub[ray]'")

from engine.server.options import Options
from engine.server_ray.asked import Asked
from engine.server_ray.front import create_front
from engine.server_ray.replica import Replica, ReplicaFailed

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


class Bare(Replica):
    """A replica that has loaded no model, and that nobody ends."""

    def __del__(self) -> None:  # type: ignore[override]
        """Nothing to wait for."""


def replica_of(app: Callable[[Any, Any, Send], Awaitable[None]], *, broken: bool = False) -> Replica:
    """A replica of any application."""
    made: Replica = object.__new__(Bare)
    made.__dict__.update(
        _id="this", _app=app, _worker=SimpleNamespace(broken=broken, alive=True, jobs=(), beat=0)
    )
    return made


async def collect(replica: Replica) -> list[Any]:
    return [item async for item in replica.answer(Asked("GET", "/"))]


def test_application_that_fails_within_its_answer_ends_it_with_its_error() -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        asyncio.run(asyncio.wait_for(collect(replica_of(app)), 10))


def test_application_that_fails_after_its_answer_leaves_it_whole_and_says_why_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START | {"status": 500})
        await send({"type": "http.response.body", "body": b"failed"})
        await asyncio.sleep(0)
        raise ValueError("after")

    async def answered() -> list[Any]:
        items = await collect(replica_of(app))
        await asyncio.sleep(0.01)
        return items

    with caplog.at_level(logging.ERROR):
        name, *batches = asyncio.run(answered())
    assert name == "this"
    assert [message["type"] for batch in batches for message in batch][-1] == "http.response.body"
    assert "ValueError: after" in caplog.text


def test_request_that_is_given_up_is_given_up_by_the_application_too() -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        try:
            await send(START)
            await receive()
            await receive()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def ask() -> None:
        items = replica_of(app).answer(Asked("GET", "/"))
        assert [await anext(items), await anext(items)] == ["this", [START]]
        await items.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert ended == ["cancelled"]


def test_replica_whose_engine_has_failed_says_who_it_is_first() -> None:
    async def ask() -> None:
        items = replica_of(Replica.kernels, broken=True).answer(Asked("GET", "/"))  # type: ignore[arg-type]
        assert await anext(items) == "this"
        with pytest.raises(ReplicaFailed, match="replica this has failed"):
            await anext(items)

    asyncio.run(ask())


def test_web_socket_is_closed_and_no_replica_asked() -> None:
    handle = SimpleNamespace(options=lambda **_: None)
    app, _ = create_front("none", handle, Options("model"))
    sent: list[Message] = []

    async def ask() -> None:
        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/v1/completions", "headers": [], "query_string": b""}
        await app(scope, receive, send)

    asyncio.run(ask())
    assert [message["type"] for message in sent] == ["websocket.close"]
