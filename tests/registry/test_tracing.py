"""Traces: a real collector on loopback gets what `khub serve` sends; nothing is imported where none are asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from khub_process import khub_command, khub_environment
from observed_hub import end, start_observed
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from registry.telemetry.tracing import wanted

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Collector(ThreadingHTTPServer):
    """Takes traces over OTLP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[ExportTraceServiceRequest] = []


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_traces_when_an_endpoint_is_set_then_each_request_is_a_span_below_its_senders(
    collector: Collector, tmp_path: Path
) -> None:
    where = {ENDPOINT: f"http://127.0.0.1:{collector.server_port}", "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    hub = start_observed(tmp_path, "--log-format", "json", OTEL_SERVICE_NAME="hub-7", **where)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    try:
        traced = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "traced"}
        address = f"{hub.url}/kernels/acme/none/resolve/main/x?token=secret-1"
        assert httpx.get(address, headers=traced).status_code == 404
        assert hub.stop() == 0  # what waits is sent before the end
    finally:
        end(hub)
    (resource,) = (spans for sent in collector.received for spans in sent.resource_spans)
    names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert names["service.name"] == "hub-7"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "GET /{kind}/{org}/{name}/resolve/{revision}/{path}"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    values = {attribute.key: attribute.value for attribute in span.attributes}
    assert values["http.response.status_code"].int_value == 404
    assert values["url.path"].string_value == "/kernels/acme/none/resolve/main/x"
    assert "secret-1" not in str(collector.received)
    (line,) = (line for line in hub.lines() if line.get("request_id") == "traced")
    assert line["trace_id"] == trace


def test_traces_when_nothing_is_set_then_opentelemetry_is_not_imported() -> None:
    code = "import sys, registry.server; print('opentelemetry' in sys.modules)"
    environment = {name: value for name, value in khub_environment().items() if "OTEL_" not in name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_traces_when_they_cannot_be_sent_so_then_serve_says_what_can(tmp_path: Path) -> None:
    done = subprocess.run(
        khub_command("serve", "--data", tmp_path / "data", "--port", "0"),
        env=khub_environment() | {"OTEL_TRACES_EXPORTER": "zipkin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "zipkin" in done.stderr and "http/protobuf" in done.stderr


def test_wanted_for_each_environment() -> None:
    assert not wanted({}) and not wanted({"OTEL_SERVICE_NAME": "x"})
    assert wanted({ENDPOINT: "http://c"}) and wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"})
    assert wanted({"OTEL_TRACES_EXPORTER": "console"})
    assert not wanted({ENDPOINT: "http://c", "OTEL_TRACES_EXPORTER": "none"})
    assert not wanted({ENDPOINT: "http://c", "OTEL_SDK_DISABLED": "true"})
