"""The registry on loopback, as far away as is asked for, with a record of what was asked of it.

    python benchmarks/_slow_hub.py DATA

Serves the folder DATA on a free port; its address is the first line of output. A request waits one round trip before
the registry sees it; with handshake=1 the first of a connection waits two, for TCP's handshake is one.
POST /bench?round_trip_s=0.05&handshake=0 sets both and empties the record, GET /bench answers it: method, path, start
and end in seconds, whether the connection was new. Requests to /bench itself neither wait nor count.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.responses import JSONResponse

sys.path.pop(0)  # this folder: its registry.py is a benchmark, not the package
from registry.app import create_app
from registry.place import Place


class SlowHub:
    """An ASGI application around the registry's."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._round_trip, self._handshake = 0.0, False
        self._record: list[dict[str, Any]] = []
        self._connections: set[tuple[str, int]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == "/bench":
            await self._control(scope)(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    def _control(self, scope: Any) -> JSONResponse:
        answer = JSONResponse(self._record)
        if scope["method"] == "POST":
            asked = parse_qs(scope["query_string"].decode())
            self._round_trip = float(asked["round_trip_s"][0])
            self._handshake = asked["handshake"] == ["1"]
            self._record, self._connections = [], set()
        return answer

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        client, start = tuple(scope["client"]), time.monotonic()
        is_new = client not in self._connections
        self._connections.add(client)
        entry = {"method": scope["method"], "path": scope["path"], "start": start, "new_connection": is_new}
        self._record.append(entry)
        await asyncio.sleep(self._round_trip * (2 if is_new and self._handshake else 1))
        try:
            await self._app(scope, receive, send)
        finally:
            entry["end"] = time.monotonic()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `khub serve` does
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    app = SlowHub(create_app(Place(Path(sys.argv[1]))))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
