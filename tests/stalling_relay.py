"""A relay before a hub that goes silent once in the middle of a long answer, as a bad connection does."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType

import httpx

_RANGE = re.compile(rb"\r\nrange: *bytes=([0-9]+)-", re.IGNORECASE)


class StallingRelay:
    """Forwards connections to `url`; the first that carries more than `after` bytes back says no more.

    `stalled`: whether that happened. `resumed_at`: the highest offset a later request asked to go on from.
    """

    def __init__(self, url: str, after: int) -> None:
        self._target = httpx.URL(url)
        self._after = after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.stalled = False
        self.resumed_at = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> StallingRelay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for opened in self._sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                client, _ = self._listener.accept()
                hub = socket.create_connection((self._target.host, self._target.port or 80))
                self._sockets += [client, hub]
                threading.Thread(target=self._forward, args=(client, hub), daemon=True).start()
                threading.Thread(target=self._answer, args=(hub, client), daemon=True).start()

    def _forward(self, client: socket.socket, hub: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if (found := _RANGE.search(data)) is not None:
                    self.resumed_at = max(self.resumed_at, int(found[1]))
                hub.sendall(data)
            hub.shutdown(socket.SHUT_WR)

    def _answer(self, hub: socket.socket, client: socket.socket) -> None:
        carried = 0
        with suppress(OSError):
            while data := hub.recv(65536):
                carried += len(data)
                if carried > self._after and not self.stalled:
                    self.stalled = True
                    return  # the client waits until it gives up
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
