"""Connections whose next request head does not come are closed, so that nobody holds a descriptor for nothing."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0  # from the first byte of a head, or the connection's beginning, to the head's end


def prompt_heads(seconds: float = HEAD_SECONDS) -> type[H11Protocol]:
    """uvicorn's strict HTTP protocol, with that patience. Between requests its keep-alive timeout counts."""

    class PromptHeads(H11Protocol):
        _alarm: asyncio.TimerHandle | None = None
        _answered = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._answered = True
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._rest()

        def _watch(self) -> None:
            waiting = self.conn.their_state is h11.IDLE
            if not waiting or (self._answered and not self.conn.trailing_data[0]):
                self._rest()
            elif self._alarm is None:
                self._alarm = self.loop.call_later(seconds, self.transport.close)

        def _rest(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

    return PromptHeads
