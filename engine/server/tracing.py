"""A trace of each request through OpenTelemetry, where the environment (`OTEL_…`) asks for it.

Otherwise nothing of it is imported. A span has what was asked and used, in the names of OpenTelemetry's
conventions for generative models, and never a prompt or an answer.
Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub_loader.errors import MissingExtraError, UsageError

from .job import Job

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_JOB = "khub_job"


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether these variables ask for traces: an exporter or where to send to is named. Pure."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in _ENDPOINTS))


def open_tracing() -> TracerProvider | None:
    """What traces are sent through, if the environment asks for them. Raises MissingExtraError, UsageError."""
    if not wanted(os.environ):
        return None
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name not in ("otlp", "console"):
        raise UsageError(f"OTEL_TRACES_EXPORTER={name} is not sent to: use otlp (over http), console or none")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ModuleNotFoundError:
        raise MissingExtraError(
            "the OTEL_ variables ask for traces, which need OpenTelemetry: pip install 'kernel-hub[otel]'"
        ) from None
    resource = Resource.create({SERVICE_NAME: "kernel-hub-engine"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)  # its sampler and limits are the environment's
    exporter = ConsoleSpanExporter() if name == "console" else OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def note(scope: Scope, job: Job) -> None:
    """Say which job a request became, for its span."""
    scope.setdefault("state", {})[_JOB] = job


class Traces:
    """Middleware that makes a span of each request to a model, below the sender's if it sends `traceparent`."""

    def __init__(self, app: ASGIApp, provider: TracerProvider, model: str) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._trace = trace
        self._tracer = provider.get_tracer("kernel-hub.engine")
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _OPERATIONS.get(scope.get("path", ""))
        if scope["type"] != "http" or operation is None:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": self._model,
            "http.request.method": scope["method"],
            "url.path": scope["path"],
        }
        context = self._propagator.extract(headers)
        kind = self._trace.SpanKind.SERVER
        name = f"{operation} {self._model}"
        scope.setdefault("state", {})
        with self._tracer.start_as_current_span(name, context, kind, attributes) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(self._trace.StatusCode.ERROR)
                await send(message)

            try:
                await self._app(scope, receive, noted)
            finally:
                if (job := scope["state"].get(_JOB)) is not None:
                    span.set_attributes(_used(job))


def _used(job: Job) -> dict[str, Any]:
    """Attributes of a job that is over, or nearly."""
    times, params = job.times, job.params
    found: dict[str, Any] = {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": float(params.temperature),
        "gen_ai.request.top_p": float(params.top_p),
        "gen_ai.request.choice.count": params.n,
        "gen_ai.usage.input_tokens": sum(map(len, job.prompts)),
        "gen_ai.usage.output_tokens": job.generated,
        "gen_ai.response.finish_reasons": [each.finish_reason for each in job.completions.values()],
    }
    if times.started is not None:
        found["gen_ai.latency.time_in_queue"] = max(0.0, times.started - times.created)
    if times.first_token is not None:
        found["gen_ai.latency.time_to_first_token"] = times.first_token - times.created
    if times.ended is not None:
        found["gen_ai.latency.e2e"] = times.ended - times.created
    return found
