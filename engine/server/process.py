"""Run the server: one process, until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from hub_loader.errors import UsageError

from ..engine import LLM
from .app import create_app
from .drain import Drain
from .heads import prompt_heads
from .options import Options

log = logging.getLogger(__name__)
ABORT_SECONDS = 2  # for streams to say that they end, once the grace is over


class Abortable(Protocol):
    """A request that is under way."""

    def abort(self) -> None:
        """Give it up; its sender is told."""


class Supervised(Protocol):
    """What answers behind an application: whether it still can, and what it is at."""

    @property
    def broken(self) -> bool:
        """Whether it never will again."""

    @property
    def jobs(self) -> Collection[Abortable]:
        """Requests that are not over."""


def serve(llm: LLM, options: Options, host: str, port: int, *, ready: Callable[[str], None]) -> int:
    """Serve a model; see `run`."""
    app = create_app(llm, options)
    return run(app, app.state.drain, app.state.served.worker, host, port, ready=ready)


def run(
    app: ASGIApp, drain: Drain, engine: Supervised, host: str, port: int, *, ready: Callable[[str], None]
) -> int:
    """Serve until SIGINT or SIGTERM; calls `ready(url)` once requests are accepted. Port 0: any.

    Returns the exit code: 1 if the engine broke. A second signal ends the process at once.

    Raises:
        UsageError: the address is taken.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    with _listen(host, port) as listener:
        config = uvicorn.Config(
            app,
            http=prompt_heads(),  # h11 is strict where request smuggling lives
            lifespan="on",
            loop="asyncio",  # whatever else is installed
            log_config=None,
            access_log=False,  # prompts are nobody's business, and requests are counted
            timeout_keep_alive=75,  # longer than clients keep idle connections: they never meet a closed one
            timeout_graceful_shutdown=ABORT_SECONDS,
        )
        _Server(config, lambda: ready(_url(host, listener)), drain, engine).run(sockets=[listener])
    return 1 if engine.broken else 0


class _Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and stops when `drain` is over rather than at the signal."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], drain: Drain, engine: Supervised
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._drain = drain
        self._engine = engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at the second signal end as the system ends a program."""
        if self._drain.begun:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            os._exit(128 + sig)  # the first process of a container is spared by its own signals
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        stops = await super().on_tick(counter)
        if self._engine.broken:
            self._drain.begin()  # who supervises the process starts another
        if not self._drain.over:
            return stops
        if self._engine.jobs:
            log.warning("Stopping with %d requests under way: --grace is over", len(self._engine.jobs))
            for job in list(self._engine.jobs):
                job.abort()
        return True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=4096)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error}; choose another --port") from None
    # Connections inherit it: without it the small pieces of a stream wait for each other's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"
