"""Run the registry: one process on one data folder, until it is told to stop."""

from __future__ import annotations

import fcntl
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from hub_loader.errors import RegistryError

from .app import create_app
from .edge import Limits, guarded_protocol
from .http import Service
from .mirror import MirrorSettings
from .place import Place


def serve(
    place: Place,
    host: str,
    port: int,
    *,
    verbose: bool,
    ready: Callable[[str], None],
    limits: Limits | None = None,
    mirror: MirrorSettings | None = None,
) -> None:
    """Serve `place` until SIGINT or SIGTERM; calls `ready(url)` once requests are accepted. Port 0: any.

    Raises RegistryError if the address is taken.
    """
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
    app = create_app(place, limits, mirror)
    with _serving(place.data), _listen(host, port) as listener:
        service: Service = app.state.service
        service.blobs.clear_temporary()
        config = uvicorn.Config(
            app,
            http=guarded_protocol(service.limits),
            log_config=None,
            access_log=verbose,
            timeout_keep_alive=75,  # longer than clients keep idle connections: they never meet a closed one
            timeout_graceful_shutdown=10,
        )
        server = _Server(config, lambda: ready(_url(host, listener)))
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


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
