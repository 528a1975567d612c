"""What serves requests, in the one process or in each of several: the plan, the application, how it stops."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from hub_loader.errors import RegistryError

from .edge import Limits, guarded_protocol
from .place import Place
from .telemetry.drain import Drain
from .telemetry.log_format import configure
from .telemetry.options import Options

if TYPE_CHECKING:
    from .http import Service
    from .mirror import MirrorSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is served and how; plain data, which other processes can be given."""

    place: Place
    limits: Limits = field(default_factory=Limits)
    options: Options = field(default_factory=Options)
    mirror: MirrorSettings | None = None


def log_to_stderr(plan: Plan) -> None:
    """Let this process log as the plan says."""
    configure(plan.options.log_format, requests=plan.options.requests)


@contextmanager
def prepared(plan: Plan) -> Iterator[tuple[uvicorn.Config, Drain]]:
    """The application as uvicorn runs it, and the state of its stopping. Raises what `create_app` raises."""
    from .app import create_app  # the process that watches workers does without

    app = create_app(plan.place, plan.limits, plan.options, plan.mirror)
    with beside_servers(plan.place.data):
        service: Service = app.state.service
        service.blobs.clear_temporary()
        config = uvicorn.Config(
            app,
            http=guarded_protocol(service.limits),
            loop="asyncio",  # whatever else is installed
            log_config=None,
            access_log=False,  # `telemetry.observe` writes a line for each request, without its query
            timeout_keep_alive=75,  # longer than clients keep idle connections: they never meet a closed one
            forwarded_allow_ips=plan.options.proxies,
        )
        yield config, app.drain


class DrainingServer(uvicorn.Server):
    """uvicorn, which says when it is ready, and stops when `drain` is over rather than at the signal."""

    def __init__(self, config: uvicorn.Config, drain: Drain, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; what does so already goes on."""
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        stops = await super().on_tick(counter)
        if not self._drain.over:
            return stops
        if self._drain.under_way:
            _log.warning("Stopping with %d requests under way: --grace is over", self._drain.under_way)
        # The end of the last answers may still be on its way to a slow reader.
        self.config.timeout_graceful_shutdown = max(1, int(self._drain.left))
        return True


def end_by(sig: int) -> None:
    """End as the system ends a program, which loses nothing confirmed."""
    signal.signal(sig, signal.SIG_DFL)
    signal.raise_signal(sig)
    os._exit(128 + sig)  # the first process of a container is spared by its own signals


@contextmanager
def beside_servers(data: Path) -> Iterator[None]:
    """Share the folder's lock with other servers, against `restore`; the system lets go of it."""
    with (data / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryError(f"{data} is being restored: wait for it to end.") from None
        yield
