"""Run the registry on one data folder, in this process or in several, until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

from hub_loader.errors import RegistryError

from .serving import DrainingServer, Plan, beside_servers, end_by, log_to_stderr, prepared
from .store import Store


def serve(plan: Plan, host: str, port: int, *, ready: Callable[[str], None], workers: int = 1) -> None:
    """Serve until SIGINT or SIGTERM; calls `ready(url)` once requests are accepted. Port 0: any.

    With more than one of `workers` each is a process of its own on the same address. A second signal ends all
    at once. Raises RegistryError if the address is taken, and what `create_app` raises.
    """
    log_to_stderr(plan)
    if workers == 1:
        with prepared(plan) as (config, drain), _listen(host, port) as listener:
            _AloneServer(config, drain, lambda: ready(_url(host, listener))).run(sockets=[listener])
        return
    from .workers import Supervisor

    Store(plan.place.data, plan.place.database).close()  # makes the folder, and migrates once
    with beside_servers(plan.place.data), _listen(host, port) as listener:
        Supervisor(plan, listener, workers).run(lambda: ready(_url(host, listener)))


class _AloneServer(DrainingServer):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at the second signal end at once."""
        if self._drain.begun:
            end_by(sig)
        super().handle_exit(sig, frame)


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
