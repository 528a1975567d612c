"""One request on its way through a replica, and through another one if that replica fails.

Nothing is passed on before an answer has really begun, so whoever waits for one does not notice that a replica
died: the request is sent again. A stream that has begun cannot be begun again, and ends with an error.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.types import Send

from ..server.errors import RequestError, Style, stopped
from ..server.http import last_event
from .asked import Asked
from .held import Held
from .replica import ReplicaFailed

log = logging.getLogger(__name__)
TRIES = 3  # replicas that one request may see failing: what kills each should not kill all
PATIENCE = 60.0  # seconds that a replica is waited for where none can take the request
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ReplicaFailed)


class Call:
    """A request under way. `handle`: Ray Serve's, whose responses are streams of what `Replica.answer` yields."""

    def __init__(self, handle: Any, asked: Asked, style: Style) -> None:
        self._handle = handle
        self._asked = asked
        self._style = style
        self._task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """Give it up: its sender, if still there, is told that the server stops."""
        if self._task is not None:
            self._task.cancel()

    async def relay(self, send: Send) -> None:
        """Answer. Raises RequestError where nothing was sent yet."""
        held = Held(send, self._asked.path)
        self._task = asyncio.create_task(self._relay(held))
        try:
            await asyncio.wait([self._task])
        finally:
            self._task.cancel()  # the sender has gone
        failure = stopped() if self._task.cancelled() else self._task.exception()
        if not isinstance(failure, RequestError | None):
            log.error("A request failed on the cluster", exc_info=failure)
            failure = RequestError(500, "This server failed on the request: see its log.")
        # Once it is over the connection says so, which looks like a sender who has gone.
        if failure is None or held.over:
            return
        if not held.began:
            raise failure
        if held.streams:  # a body that is cut short by closing the connection tells enough
            await held.end(last_event(failure, self._style))

    async def _relay(self, held: Held) -> None:
        asked = self._asked
        for _ in range(TRIES):
            replica = None
            responses = self._handle.answer.remote(asked)
            try:
                items = aiter(responses)
                replica = await asyncio.wait_for(anext(items), PATIENCE)
                async for messages in items:
                    for message in messages:
                        await held.take(message, replica)
                return
            except _LOST as error:
                log.warning("Replica %s was lost: %s", replica or "", str(error).partition("\n")[0])
            except (asyncio.TimeoutError, DeploymentUnavailableError):
                raise _nobody() from None
            finally:
                with suppress(Exception):  # it is over, or its replica is
                    responses.cancel()
            if held.content:
                raise _lost()
            held.again()
            asked = replace(asked, avoid=asked.avoid | {replica or ""})
        raise RequestError(
            503, f"{TRIES} replicas failed one after the other while they were at this request."
        )


def _lost() -> RequestError:
    return RequestError(
        503,
        "The replica that was answering is gone, and its stream with it: send the request again.",
        code="replica_lost",
        headers={"Retry-After": "1"},
    )


def _nobody() -> RequestError:
    return RequestError(
        503,
        "No replica can take this request: send it again.",
        code="no_replica",
        headers={"Retry-After": "5"},
    )
