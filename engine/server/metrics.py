"""What is counted, under the names that dashboards for vLLM's servers read.

Source: https://docs.vllm.ai/en/stable/design/metrics.html
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from .guard import check_scraper
from .job import Event, Job
from .worker import Stats

# Seconds.
_FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
)
_BETWEEN = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
    40,
    80,
)
_WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
LABELS = ("model_name", "engine")


class Metrics:
    """Counters and histograms of one model's server, to be observed in the event loop's thread alone."""

    def __init__(self, name: str) -> None:
        self.registry = at = CollectorRegistry()
        self._name = name

        def histogram(key: str, text: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(f"vllm:{key}", text, LABELS, buckets=buckets, registry=at)
            return made.labels(name, "0")

        self._generated = Counter("vllm:generation_tokens", "Tokens generated", LABELS, registry=at)
        self._finished = Counter(
            "vllm:request_success", "Continuations that ended", [*LABELS, "finished_reason"], registry=at
        )
        self._refused = Counter(
            "khub_engine_refusals", "Requests that were not computed, by status", ["status"], registry=at
        )
        self._first = histogram("time_to_first_token_seconds", "From asking to the first token", _FIRST)
        self._between = histogram("inter_token_latency_seconds", "From one token to the next", _BETWEEN)
        self._per_token = histogram(
            "request_time_per_output_token_seconds", "Mean time from one token to the next", _BETWEEN
        )
        self._whole = histogram("e2e_request_latency_seconds", "From asking to the last token", _WHOLE)
        self._queue = histogram("request_queue_time_seconds", "From asking to the first step", _WHOLE)
        self._inference = histogram("request_inference_time_seconds", "First step to last token", _WHOLE)
        self._prefill = histogram("request_prefill_time_seconds", "First step to first token", _WHOLE)
        self._decode = histogram("request_decode_time_seconds", "First token to last token", _WHOLE)
        self._prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._answer = histogram("request_generation_tokens", "Tokens generated for a request", _TOKENS)
        self._wanted = histogram("request_params_max_tokens", "max_tokens as asked for", _TOKENS)
        self._n = histogram("request_params_n", "n as asked for", (1, 2, 5, 10, 20))
        for reason in ("stop", "length", "abort"):  # dashboards add them up: they are there from the start
            self._finished.labels(name, "0", reason)
        self._tokens = self._generated.labels(name, "0")
        ProcessCollector(registry=at)

    def watch(self, stats: Callable[[], Stats], waiting: Callable[[], int], block_size: int) -> None:
        """Ask the engine's state whenever somebody scrapes."""
        self.registry.register(_State(self._name, stats, waiting, block_size))

    def refused(self, status: int) -> None:
        """A request was answered with an error."""
        self._refused.labels(str(status)).inc()

    def observe(self, job: Job, events: Sequence[Event], now: float) -> None:
        """A step gave a job these events."""
        times = job.times
        tokens = sum(len(delta.choices) for _, delta in events)
        self._tokens.inc(tokens)
        if tokens and times.first_token is None:
            times.first_token = now
            self._first.observe(now - times.created)
        elif tokens and times.last_token is not None:
            self._between.observe(now - times.last_token)
        if tokens:
            times.last_token = now
        for _, delta in events:
            if delta.completion is not None:
                self._finished.labels(self._name, "0", delta.completion.finish_reason).inc()
        if job.over:
            self._ended(job, now)

    def _ended(self, job: Job, now: float) -> None:
        times = job.times
        self._whole.observe(now - times.created)
        self._wanted.observe(job.params.max_tokens)
        self._n.observe(job.params.n)
        self._answer.observe(job.generated)
        for prompt in job.prompts:
            self._prompt.observe(len(prompt))
        if times.started is None:  # given up while it waited
            return
        self._queue.observe(max(0.0, times.started - times.created))
        self._inference.observe(now - times.started)
        if times.first_token is not None:
            self._prefill.observe(times.first_token - times.started)
            self._decode.observe(now - times.first_token)
            if job.generated > job.choices:
                steps = job.generated / job.choices - 1
                self._per_token.observe((now - times.first_token) / steps)


class _State(Collector):
    """The engine between two steps."""

    def __init__(
        self, name: str, stats: Callable[[], Stats], waiting: Callable[[], int], block_size: int
    ) -> None:
        self._labels = (name, "0")
        self._stats = stats
        self._waiting = waiting
        self._block_size = block_size

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        usage = stats.held_blocks / stats.blocks if stats.blocks else 0.0
        yield self._gauge("num_requests_running", "Continuations in the batch", stats.running)
        yield self._gauge("num_requests_waiting", "Continuations that wait for a place", self._waiting())
        yield self._gauge("kv_cache_usage_perc", "Share of the KV cache's blocks in use; 1 is all", usage)
        yield self._counter("num_preemptions", "Continuations that gave up their blocks", stats.preemptions)
        yield self._counter("prompt_tokens", "Tokens of prompts", stats.prompt_tokens)
        yield self._counter("prefix_cache_queries", "Tokens looked for in the cache", stats.prompt_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found in the cache", stats.prefix_hit_tokens)
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "1", labels=["engine", "block_size", "num_gpu_blocks", "python"]
        )
        info.add_metric(["0", str(self._block_size), str(stats.blocks), platform.python_version()], 1)
        yield info

    def _gauge(self, key: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{key}", text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, key: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{key}", text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family


async def metrics(request: Request) -> Response:
    """Everything that is counted, in the format that the scraper asks for."""
    check_scraper(request.scope, request.app.state.served.options.metrics_token)
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.served.metrics.registry), headers={"Content-Type": media_type})
