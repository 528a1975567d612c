"""`khub engine serve --ray`, once its arguments are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..kernels import format_bindings
from ..server.options import Options
from ..server.process import run
from .arguments import ClusterOptions
from .cluster import application
from .front import create_front
from .replica import Spec


def serve(
    model: str,
    arguments: Mapping[str, Any],
    options: Options,
    cluster: ClusterOptions,
    host: str,
    port: int,
    *,
    ready: Callable[[str], None],
) -> int:
    """Start the replicas and serve until SIGINT or SIGTERM; as `engine.server.process.run`.

    Raises:
        ClusterError: there is no cluster, or no replica starts on it.
    """
    place = str(Path(model).resolve()) if Path(model).exists() else model
    behind = replace(options, keys=(), metrics_token=None)  # who may ask is decided here
    with application(Spec(place, behind, arguments), cluster) as running:
        print(format_bindings(running.kernels), file=sys.stderr)
        app, front = create_front(running.name, running.handle, options)
        return run(app, app.state.drain, front, host, port, ready=ready)
