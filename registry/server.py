"""Run the registry: one process on one data folder, until it is told to stop."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from hub_loader.errors import RegistryError

from .app import create_app
from .edge import Limits, guarded_protocol
from .http import Service
from .mirror import MirrorSettings
from .place import Place
from .telemetry.drain import Drain
from .telemetry.log_format import configure
from .telemetry.options import Options

_log = logging.getLogger(__name__)


def serve(
    place: Place,
    host: str,
    port: int,
    *,
    ready: Callable[[str], None],
    limits: Limits | None = None,
    options: Options | None = None,
    mirror: MirrorSettings | None = None,
) -> None:
    """Serve `place` until SIGINT or SIGTERM; calls `ready(url)` once requests are accepted. Port 0: any.

    A second signal ends the process at once. Raises RegistryError if the address is taken.
    """
    options = options or Options()
    configure(options.log_format, requests=options.requests)
    app = create_app(place, limits, options, mirror)
    with _serving(place.data), _listen(host, port) as listener:
        service: Service = app.state.service
        service.blobs.clear_temporary()
        config = uvicorn.Config(
            app,
            http=guarded_protocol(service.limits),
            log_config=None,
            access_log=False,  # `telemetry.observe` writes a line for each request, without its query
            timeout_keep_alive=75,  # longer than clients keep idle connections: they never meet a closed one
            forwarded_allow_ips=options.proxies,
        )
        server = _Server(config, lambda: ready(_url(host, listener)), app.drain)
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and stops when `drain` is over rather than at the signal."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], drain: Drain) -> None:
        super().__init__(config)
        self._ready = ready
        self._drain = drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at the second signal end as the system ends a program, which loses nothing confirmed."""
        if self._drain.begun:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            os._exit(128 + sig)  # the first process of a container is spared by its own signals
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


@contextmanager
def _serving(data: Path) -> Iterator[None]:
    """Share the folder's lock with other servers, against `restore`; the system lets go of it."""
    with (data / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryError(f"{data} is being restored: wait for it to end.") from None
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise RegistryError(
            f"Cannot listen on {host}, port {port}: {error}. Choose another --port."
        ) from None
    # Connections inherit it. Without it a small answer, sent as headers and body, waits 40 ms for the
    # client's acknowledgement; asyncio sets it only where the socket names its protocol, and this has none.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"
