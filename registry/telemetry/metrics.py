"""What a server counts, for Prometheus. Each application has counters of its own.

Where the environment names a folder (`PROMETHEUS_MULTIPROC_DIR`), processes count into files of that folder, and
each of them exposes the sum. What such a process says of itself, the `process_…` metrics, is left out: it would be
that of whichever process was asked.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # the client library's name, which it reads when it is imported

# Seconds: from an answer out of the cache to a large file over a slow line.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True)
class Served:
    """A request that was answered, or whose sender went away before that (`status` 499). Bytes are of bodies."""

    route: str
    method: str
    status: int
    seconds: float
    bytes_in: int
    bytes_out: int


class Metrics:
    """The counters; `registry` is what they are exposed from. Safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        folder = os.environ.get(SHARED)
        at = None if folder else self.registry
        labels = ["route", "method"]
        self._requests = Counter(
            "khub_requests", "Requests by route, method and status", [*labels, "status"], registry=at
        )
        self._seconds = Histogram(
            "khub_request_seconds", "Seconds from head to end", labels, buckets=_BUCKETS, registry=at
        )
        self._in = Counter("khub_request_bytes", "Bytes of bodies that came", ["route"], registry=at)
        self._out = Counter("khub_response_bytes", "Bytes of bodies that were sent", ["route"], registry=at)
        self.in_flight = Gauge(
            "khub_requests_in_flight", "Requests being answered", registry=at, multiprocess_mode="livesum"
        )
        self._commits = Counter("khub_commits_accepted", "Commits that clients made", registry=at)
        self._uploads = Counter("khub_uploads_accepted", "LFS objects that clients sent", registry=at)
        self._refused = Counter("khub_rate_limit_refusals", "Requests answered 429", registry=at)
        workers = Gauge("khub_workers", "Processes that answer", registry=at, multiprocess_mode="livesum")
        workers.set(1)
        build = Gauge(
            "khub_build_info",
            "1, with what runs as labels",
            ["version", "python"],
            registry=at,
            multiprocess_mode="livemax",
        )
        build.labels(_version(), platform.python_version()).set(1)
        if folder:
            MultiProcessCollector(self.registry, folder)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=self.registry)

    def count(self, done: Served) -> None:
        """Count one request."""
        method = done.method if done.method in _METHODS else "other"
        self._requests.labels(done.route, method, str(done.status)).inc()
        self._seconds.labels(done.route, method).observe(done.seconds)
        self._in.labels(done.route).inc(done.bytes_in)
        self._out.labels(done.route).inc(done.bytes_out)
        if done.status == 429:
            self._refused.inc()
        if done.status < 300 and method == "POST" and done.route.endswith("/commit/{revision}"):
            self._commits.inc()
        if done.status < 300 and method == "PUT" and done.route.endswith("/objects/{oid}"):
            self._uploads.inc()


def _version() -> str:
    try:
        return version("kernel-hub")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
