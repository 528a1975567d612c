"""One replica: the server's application in an actor of Ray Serve, asked without a socket between."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import serve

from ..engine import LLM
from ..kernel_table import Binding
from ..server.app import create_app
from ..server.options import Options
from ..server.worker import Worker
from .asked import Asked
from .backlog import queued_tokens, stalled_seconds
from .policy import QUEUED_TOKENS

log = logging.getLogger(__name__)
STALLED = (
    300.0  # seconds without an end of a step, while there is work, after which the engine counts as dead
)

Message = MutableMapping[str, Any]
"""Of ASGI, from the application."""

Messages = asyncio.Queue[Message | None]
"""None is the end."""


class ReplicaFailed(Exception):  # noqa: N818 - as EngineFailure
    """The engine of a replica does not work any more; another can answer."""


@dataclass(frozen=True)
class Spec:
    """What each replica serves; `arguments`: those of `LLM` beside the model."""

    model: str
    options: Options
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Replica:
    """Loads the model, fetches its kernels, and answers until its engine fails."""

    async def __init__(self, spec: Spec, secrets: Mapping[str, str]) -> None:  # type: ignore[misc]  # Ray's
        os.environ.update(secrets)
        llm = await asyncio.to_thread(LLM, spec.model, **spec.arguments)
        self._id: str = serve.get_replica_context().replica_id.unique_id
        self._kernels = tuple(llm.kernel_table)
        self._app = create_app(llm, spec.options)
        self._worker: Worker = self._app.state.served.worker
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()

    async def __del__(self) -> None:
        if hasattr(self, "_lifespan"):  # the model was loaded
            await self._lifespan.__aexit__(None, None, None)

    async def answer(self, asked: Asked) -> AsyncIterator[str | list[Message]]:
        """This replica's id at once, then the application's messages, several where there are several.

        Raises:
            ReplicaFailed: after the id, which says whom to avoid, and before anything was answered.
        """
        yield self._id
        self._check()
        messages: Messages = asyncio.Queue()
        task = asyncio.create_task(self._run(asked, messages))
        task.add_done_callback(_report)
        complete = False
        try:
            while not complete and (batch := await _next_batch(messages)):
                complete = not batch[-1].get("more_body", batch[-1]["type"] == "http.response.start")
                if batch[0].get("status", 200) >= 500 and self._worker.broken:
                    self._check()  # another replica can do better
                yield batch
            if not complete:
                await task
        finally:
            if not complete:
                task.cancel()  # the sender has gone: what it asked for is given up

    async def _run(self, asked: Asked, messages: Messages) -> None:
        unread: list[Message] = [{"type": "http.request", "body": asked.body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await asyncio.Event().wait()  # who goes away cancels
            raise AssertionError

        async def send(message: Message) -> None:
            messages.put_nowait(message)

        try:
            await self._app(_scope(asked), receive, send)
        finally:
            messages.put_nowait(None)

    async def kernels(self) -> Sequence[Binding]:
        """What serves each slot."""
        return self._kernels

    async def check_health(self) -> None:
        """Ray Serve replaces this replica after it raised a few times. Raises ReplicaFailed."""
        self._check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `ByQueuedTokens`."""
        return {QUEUED_TOKENS: float(queued_tokens(self._worker.jobs))}

    def _check(self) -> None:
        worker = self._worker
        if worker.broken or not worker.alive:
            raise ReplicaFailed(f"the engine of replica {self._id} has failed: see its log")
        if stalled_seconds(worker.jobs, worker.beat, time.monotonic()) > STALLED:
            raise ReplicaFailed(f"the engine of replica {self._id} has not ended a step for {STALLED:g} s")


async def _next_batch(messages: Messages) -> list[Message]:
    """What is there, waiting for the first; nothing at the end."""
    batch: list[Message] = []
    message = await messages.get()
    while message is not None:
        batch.append(message)
        if messages.empty():
            return batch
        message = messages.get_nowait()
    messages.put_nowait(None)  # for the next time
    return batch


def _report(task: asyncio.Task[None]) -> None:
    """An application that fails has answered that it did, and says more here."""
    if not task.cancelled() and (failure := task.exception()) is not None:
        log.error("A request failed", exc_info=failure)


def _scope(asked: Asked) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": asked.query,
        "root_path": "",
        "headers": list(asked.headers),
        "client": asked.client,
        "server": None,
        "state": {},
    }
