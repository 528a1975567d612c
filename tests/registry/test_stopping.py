"""SIGTERM: what is under way is finished, what is new is sent away, health says so, exit 0."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from observed_hub import ObservedHub, Upload, end, start_observed, until

from registry.telemetry.drain import Drain


@pytest.fixture
def hub(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ObservedHub]:
    started = start_observed(tmp_path, *getattr(request, "param", ()))
    yield started
    end(started)


def _stops(hub: ObservedHub) -> bool:
    return httpx.get(f"{hub.url}/readyz").status_code == 503


def test_sigterm_when_an_upload_is_under_way_then_it_is_finished_and_the_exit_code_is_0(
    hub: ObservedHub,
) -> None:
    upload = Upload(hub)
    hub.process.send_signal(signal.SIGTERM)
    until(lambda: _stops(hub))
    assert httpx.get(f"{hub.url}/readyz").json()["reasons"] == ["The server is stopping."]
    assert httpx.get(f"{hub.url}/healthz").text == "ok"
    refused = httpx.get(f"{hub.url}/api/kernels/acme/relu")
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert refused.headers["retry-after"] == "1"
    head, _, body = upload.finish().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and json.loads(body)["success"] is True
    assert hub.process.wait(30) == 0
    again = start_observed(hub.data.parent)
    try:
        assert httpx.get(f"{again.url}/kernels/acme/relu/resolve/main/large.bin").content == b"x" * 300_000
    finally:
        end(again)


@pytest.mark.parametrize("hub", [("--notice", "600")], indirect=True)
def test_second_signal_when_the_server_stops_then_it_ends_at_once(hub: ObservedHub) -> None:
    hub.process.send_signal(signal.SIGTERM)
    until(lambda: _stops(hub))
    served = httpx.get(f"{hub.url}/api/kernels")  # in the time of notice all is answered
    assert (served.status_code, served.headers["connection"]) == (200, "close")
    hub.process.send_signal(signal.SIGTERM)
    assert hub.process.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("hub", [("--grace", "0.5")], indirect=True)
def test_sigterm_when_an_upload_outlasts_the_grace_then_the_server_ends_and_says_so(hub: ObservedHub) -> None:
    upload = Upload(hub)
    hub.process.send_signal(signal.SIGTERM)
    assert hub.process.wait(30) == 0
    assert "with 1 requests under way" in hub.log.read_text()
    assert b"200" not in upload.socket.recv(65536)[:15]


def test_drain_over_time_when_requests_end_or_the_grace_does() -> None:
    now = [0.0]
    drain = Drain(notice=2, grace=10, clock=lambda: now[0])
    drain.under_way = 1
    assert (drain.begun, drain.refuses, drain.over) == (False, False, False)
    drain.begin()
    assert (drain.begun, drain.refuses, drain.over, drain.left) == (True, False, False, 10)
    now[0] = 2
    drain.begin()  # a second time changes nothing
    assert (drain.refuses, drain.over, drain.left) == (True, False, 8)
    drain.under_way = 0
    assert drain.over
    drain.under_way = 1
    now[0] = 10
    assert drain.over and drain.left == 0
