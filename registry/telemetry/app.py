"""The application with everything around it that operators look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp

from ..blobs import BlobStore
from ..store import Store
from .drain import Drain, Draining
from .metrics import Metrics
from .observe import Observe
from .options import Options
from .ready import Readiness
from .stored import StoredCollector
from .tracing import Traces, open_tracing


class Observed(Starlette):
    """Starlette, whose outermost middlewares are ours: they also see what its handler of failures answers."""

    def __init__(self, store: Store, blobs: BlobStore, data: Path, options: Options, **rest: Any) -> None:
        """Raises UsageError, MissingExtraError if traces are asked for and cannot be sent."""
        self._tracing = open_tracing()
        super().__init__(**rest)
        self.drain = Drain(options.notice, options.grace)
        self.state.options = options
        self.state.drain = self.drain
        self.state.readiness = Readiness(store, blobs)
        self.state.metrics = Metrics()
        self.state.metrics.registry.register(StoredCollector(store, data))

    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's, and around it from the inside out: draining, traces, log and metrics."""
        app: ASGIApp = Draining(super().build_middleware_stack(), self.drain)
        if self._tracing is not None:
            app = Traces(app, self._tracing)
        return Observe(app, self.state.metrics)

    def stop_observing(self) -> None:
        """Send the traces that wait, ask no more whether parts answer."""
        self.state.readiness.close()
        if self._tracing is not None:
            self._tracing.shutdown()
