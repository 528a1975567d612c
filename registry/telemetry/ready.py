"""`/readyz`: whether requests can be answered now. The database and the storage are asked, at most once a second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..blobs import BlobStore
from ..store import Store

PATIENCE = 5.0  # seconds until a part counts as one that does not answer
_REMEMBERED = 1.0  # seconds: whoever asks more often gets the last answer
_log = logging.getLogger(__name__)


class Readiness:
    """Asks the parts, in threads of its own: a server whose others are all busy is still ready."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._parts: dict[str, Callable[[], None]] = {
            "database": lambda: _ask(store),
            "storage": blobs.storage.check,
        }
        self._threads = ThreadPoolExecutor(2 * len(self._parts), "readyz")
        self._turn = asyncio.Lock()
        self._asked: float | None = None
        self._reasons: list[str] = []

    async def reasons(self) -> list[str]:
        """Why no request can be answered; empty if all can."""
        async with self._turn:  # of those who ask at the same time one asks the parts
            now = time.monotonic()
            if self._asked is None or now - self._asked >= _REMEMBERED:
                found = await asyncio.gather(
                    *(self._reason(name, part) for name, part in self._parts.items())
                )
                self._reasons = [reason for reason in found if reason]
                self._asked = time.monotonic()
            return self._reasons

    async def _reason(self, name: str, part: Callable[[], None]) -> str:
        asked = asyncio.get_running_loop().run_in_executor(self._threads, part)
        try:
            await asyncio.wait_for(asked, PATIENCE)
        except asyncio.TimeoutError:
            return f"The {name} does not answer within {PATIENCE:g} seconds."
        except Exception as error:  # any: what is wrong is the log's, for strangers may read the answer
            _log.error("Not ready, the %s fails: %s", name, " ".join(str(error).split()))
            return f"The {name} does not answer as it should; the server's log says more."
        return ""

    def close(self) -> None:
        """Ask no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def readyz(request: Request) -> Response:
    """200, or 503 with the reasons: send requests elsewhere."""
    state = request.app.state
    reasons = ["The server is stopping."] if state.drain.begun else await state.readiness.reasons()
    headers = {"Cache-Control": "no-store"}
    return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200, headers)


def _ask(store: Store) -> None:
    with store.read() as session:
        session.execute(text("SELECT 1"))
