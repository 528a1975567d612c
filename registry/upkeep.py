"""What a server does beside answering: collect content that nothing refers to, once a day."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from starlette.concurrency import run_in_threadpool

from .blobs import BlobStore
from .clock import utc_now
from .collect import collect
from .settings import claim
from .store import Store

_LOOK = 3600.0  # seconds between looks at whether a day has passed
_DAY = timedelta(days=1)
_log = logging.getLogger(__name__)


@asynccontextmanager
async def upkeep(store: Store, blobs: BlobStore) -> AsyncIterator[None]:
    """Keep it up for as long as the context lasts. Of several processes on one database one does it."""
    stop = threading.Event()
    task = asyncio.create_task(_daily(store, blobs, stop))
    try:
        yield
    finally:
        stop.set()  # a collection under way is waited for
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _daily(store: Store, blobs: BlobStore, stop: threading.Event) -> None:
    while True:
        await asyncio.sleep(_LOOK)
        try:
            await run_in_threadpool(collect_if_due, store, blobs, stop.is_set)
        except Exception:  # the next look may find database and storage back
            _log.exception("Collecting content that nothing refers to failed; it is tried again tomorrow")


def collect_if_due(store: Store, blobs: BlobStore, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Collect, if no process has within a day; whether it did."""
    now = utc_now()
    if not claim(store, "collected", _DAY, now):
        return False
    done = collect(store, blobs, now, stopped=stopped)
    _log.info("Collected %d blobs (%d bytes); %d wait", done.deleted, done.deleted_bytes, done.waiting)
    return True
