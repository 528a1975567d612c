"""A real server under strain: clients that vanish, too many requests, keys, a stop, what its metrics say."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from engine_models import SHIPPED
from serving import NAME, Server, StartServer

LONG: dict[str, Any] = {
    "model": NAME,
    "prompt": "def main():",
    "max_tokens": 1000,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}
METRICS = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:request_inference_time_seconds_bucket",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_params_max_tokens_bucket",
    "vllm:cache_config_info",
)


def send_and_vanish(server: Server, *, stream: bool) -> None:
    """Ask for a long completion on a bare socket; close it as soon as the engine is at work."""
    body = {**LONG, **LONG["extra_body"], "stream": stream}
    del body["extra_body"]
    with post_raw(server, body):
        server.wait_until(lambda: server.metric("vllm:num_requests_running") > 0, "it runs")


def post_raw(server: Server, body: dict[str, Any]) -> socket.socket:
    """Ask for a completion on a bare socket, whose end is the end of the client."""
    content = json.dumps(body).encode()
    headers = ("Host: x", "Content-Type: application/json", f"Content-Length: {len(content)}")
    head = "\r\n".join(("POST /v1/completions HTTP/1.1", *headers, "", ""))
    port = int(server.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_request_whose_client_vanishes_is_aborted_and_its_blocks_are_free(
    server: Server, stream: bool
) -> None:
    server.wait_until(server.idle, "idle before")
    aborted = server.metric("vllm:request_success_total", finished_reason="abort")
    send_and_vanish(server, stream=stream)
    server.wait_until(server.idle, "its blocks are free")
    assert server.metric("vllm:request_success_total", finished_reason="abort") == aborted + 1


def test_stream_that_the_client_closes_is_aborted(server: Server) -> None:
    with server.openai().completions.create(**LONG, stream=True) as stream:
        next(iter(stream))
    server.wait_until(server.idle, "its blocks are free")


def test_metrics_have_the_names_that_dashboards_read_and_count_tokens(server: Server) -> None:
    server.wait_until(server.idle, "idle before")
    before = server.metric("vllm:generation_tokens_total", model_name=NAME)
    prompts = server.metric("vllm:prompt_tokens_total")
    hits = server.metric("vllm:prefix_cache_hits_total")
    for _ in range(2):
        answer = server.openai().completions.create(
            model=NAME, prompt=[7] * 40, max_tokens=5, extra_body={"ignore_eos": True}
        )
    assert server.metric("vllm:generation_tokens_total", model_name=NAME) == before + 10
    assert server.metric("vllm:prompt_tokens_total") == prompts + 80
    assert server.metric("vllm:prefix_cache_hits_total") >= hits + 32
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 32
    for name in METRICS:
        server.metric(name)


def test_metrics_are_for_this_machine_alone(server: Server) -> None:
    through_a_proxy = httpx.get(f"{server.url}/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
    assert through_a_proxy.status_code == 403


@pytest.mark.slow
def test_more_than_the_queue_takes_is_answered_429_with_retry_after_and_the_rest_is_served(
    start_server: StartServer,
) -> None:
    server = start_server(SHIPPED, "--queue", "4", "--max-sequences", "2")
    client = server.openai()
    first = client.completions.create(**(LONG | {"max_tokens": 150}), stream=True)
    streams = [client.completions.create(**LONG, stream=True) for _ in range(5)]
    with pytest.raises(openai.RateLimitError) as refused:
        client.completions.create(**LONG)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.code == "rate_limit_exceeded"
    assert server.metric("khub_engine_refusals_total", status="429") == 1
    assert server.metric("vllm:num_requests_running") == 2
    assert server.metric("vllm:num_requests_waiting") == 4
    for stream in streams:
        stream.close()
    assert list(first)[-1].choices[0].finish_reason == "length"  # undisturbed
    patient = server.openai(retries=5)
    assert patient.completions.create(model=NAME, prompt="x", max_tokens=1).choices
    server.wait_until(server.idle, "nothing is left")
    assert server.stop() == 0


@pytest.mark.slow
def test_request_needs_one_of_the_keys_where_there_are_any(start_server: StartServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n\nsecond-key\n")
    server = start_server(SHIPPED, "--api-key-file", keys, "--metrics-token", "scraper")
    for key in ("first-key", "second-key"):
        assert server.openai(key).models.list().data
    for key in ("first", "none", "first-key\n"[:-2]):
        with pytest.raises(openai.AuthenticationError):
            server.openai(key).completions.create(model=NAME, prompt="x", max_tokens=1)
    assert httpx.get(f"{server.url}/about").status_code == 401
    assert httpx.get(f"{server.url}/about", headers={"X-Api-Key": "second-key"}).status_code == 200
    assert httpx.post(f"{server.url}/v1/messages").json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    scraped = httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer scraper"})
    assert "vllm:num_requests_running" in scraped.text
    server.stop()


@pytest.mark.slow
def test_stop_answers_what_is_under_way_and_sends_new_requests_away(start_server: StartServer) -> None:
    server = start_server(SHIPPED, "--grace", "300")
    stream = server.openai().completions.create(**(LONG | {"max_tokens": 200}), stream=True)
    pieces = iter(stream)
    next(pieces)
    waiting = httpx.Client()  # a connection that is there before the server stops
    assert waiting.get(f"{server.url}/health").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: waiting.get(f"{server.url}/health").status_code == 503, "health says so")
    refused = waiting.post(f"{server.url}/v1/completions", json={})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    *_, last = pieces
    assert last.choices[0].finish_reason == "length"
    assert server.process.wait(timeout=60) == 0
    server.process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.slow
def test_stop_ends_with_an_error_what_takes_longer_than_the_grace(start_server: StartServer) -> None:
    server = start_server(SHIPPED, "--grace", "0.2", "--max-sequences", "1")
    client = server.openai()
    stream = iter(client.completions.create(**LONG, stream=True))
    next(stream)
    with ThreadPoolExecutor(1) as threads:
        whole = threads.submit(client.completions.create, **LONG)
        server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1, "it waits")
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="stopped before the answer was complete"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="stopped before the answer was complete"):
            whole.result()
    assert server.process.wait(timeout=60) == 0
    server.process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.slow
def test_ten_thousand_queued_requests_stall_nobody(start_server: StartServer) -> None:
    server = start_server(SHIPPED, "--queue", "20000")
    client = server.openai()
    many: dict[str, Any] = {
        "model": NAME,
        "prompt": [[i % 2000, i % 7] for i in range(5000)],
        "max_tokens": 1000,
        "n": 2,
    }
    with post_raw(server, many):
        server.wait_until(lambda: server.metric("vllm:num_requests_waiting") > 9000, "they wait")
        generated = server.metric("vllm:generation_tokens_total")
        server.wait_until(
            lambda: server.metric("vllm:generation_tokens_total") > generated, "it computes meanwhile"
        )
        assert server.metric("vllm:num_requests_waiting") > 9000
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    server.wait_until(server.idle, "all are given up")
    assert client.completions.create(model=NAME, prompt="x", max_tokens=2).choices
    assert server.stop() == 0
