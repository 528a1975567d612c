"""A trace of each request through OpenTelemetry, where the environment (`OTEL_…`) asks for it.

Otherwise nothing of it is imported. Attributes follow OpenTelemetry's semantic conventions for HTTP
servers. A query is in none of them.
Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub_loader.errors import MissingExtraError, UsageError

from ..throttle import address_of
from .redact import redact
from .route_names import NONE, route_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


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
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(os.environ)
    except ModuleNotFoundError:
        raise MissingExtraError(
            "The OTEL_ variables ask for traces, which need OpenTelemetry: pip install 'kernel-hub[otel]'"
        ) from None
    resource = Resource.create({SERVICE_NAME: "kernel-hub"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)  # its sampler and limits are the environment's
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(environment: Mapping[str, str]) -> SpanExporter:
    name = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    general = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or general
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if (name, protocol) != ("otlp", "http/protobuf"):
        raise UsageError(
            f"Traces cannot be sent with OTEL_TRACES_EXPORTER={name} and protocol {protocol}: "
            "use otlp over http/protobuf, console, or none."
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class Traces:
    """Middleware that makes a span of each request, below the sender's if it sends `traceparent`."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._trace = trace
        self._tracer = provider.get_tracer("kernel-hub.registry")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"],
            self._propagator.extract(headers),
            self._trace.SpanKind.SERVER,
            _attributes(scope, headers),
        ) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(self._trace.StatusCode.ERROR)
                await send(message)

            state = scope.setdefault("state", {})
            state["trace_id"] = self._trace.format_trace_id(span.get_span_context().trace_id)
            try:
                await self._app(scope, receive, noted)
            finally:
                if (route := route_of(scope)) != NONE:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)


def _attributes(scope: Scope, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "http.request.method": scope["method"],
        "url.scheme": scope["scheme"],
        "url.path": redact(scope["raw_path"].decode("ascii", "replace")),
        "client.address": address_of(scope),
        "user_agent.original": redact(headers.get("user-agent", "")),
        "network.protocol.version": scope["http_version"],
    }
