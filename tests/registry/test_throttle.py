"""Rate limits: the bucket over all sequences of requests, and the application with a database that sets them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_command import new_token, registry
from starlette.testclient import TestClient

from registry.accounts.bucket import Buckets, Rate
from registry.app import create_app
from registry.place import Place

rates = st.builds(Rate, per_second=st.floats(0.01, 1000), at_once=st.floats(1, 1000))


@given(rate=rates, pauses=st.lists(st.floats(0, 100), max_size=60))
def test_bucket_never_lets_more_through_than_the_burst_and_the_rate(rate: Rate, pauses: list[float]) -> None:
    buckets, now, passed = Buckets(), 0.0, 0
    for pause in pauses:
        now += pause
        passed += buckets.take("a", rate, now) == 0
        assert passed <= rate.at_once + now * rate.per_second + 1e-6


@given(rate=rates, pauses=st.lists(st.floats(0, 1), max_size=60))
def test_bucket_lets_through_who_waits_as_long_as_it_says(rate: Rate, pauses: list[float]) -> None:
    buckets, now = Buckets(), 0.0
    for pause in pauses:
        now += pause
        wait = buckets.take("a", rate, now)
        if wait:
            now += wait * (1 + 1e-9) + 1e-9
            assert buckets.take("a", rate, now) == 0


@given(rate=rates, count=st.integers(1, 30))
def test_bucket_of_one_caller_is_not_anothers(rate: Rate, count: int) -> None:
    buckets = Buckets()
    for _ in range(count):
        buckets.take("noisy", rate, 0.0)
    assert buckets.take("quiet", rate, 0.0) == 0


def test_bucket_when_the_clock_goes_back_then_nobody_gains() -> None:
    buckets, rate = Buckets(), Rate(1.0, 1.0)
    assert buckets.take("a", rate, 10.0) == 0
    assert buckets.take("a", rate, 0.0) > 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def limited(data: Path) -> Iterator[TestClient]:
    """An application that lets 5 requests of an address through at once, 50 of a token, and then hardly any."""
    registry(data, "settings", "--rate-address", "0.001", "--rate-token", "0.01", "--burst", "5000")
    with TestClient(create_app(Place(data))) as client:
        yield client


def statuses(web: TestClient, count: int, **headers: str) -> list[int]:
    return [web.get("/api/agent-harnesses", headers=headers).status_code for _ in range(count)]


def test_address_when_it_asks_too_much_then_429_with_the_time_to_wait(limited: TestClient) -> None:
    assert statuses(limited, 6) == [200] * 5 + [429]
    refused = limited.get("/api/agent-harnesses")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 1000
    assert (refused.headers["x-error-code"], refused.headers["x-error-message"]) == (
        "TooManyRequests",
        refused.json()["error"],
    )
    assert [limited.get("/healthz").status_code for _ in range(10)] == [200] * 10


def test_token_that_works_has_a_bucket_of_its_own_and_made_up_ones_have_none(
    limited: TestClient, data: Path
) -> None:
    token = new_token(data, "--org", "acme")
    # The first request is the address's: the token is not known yet.
    assert statuses(limited, 52, Authorization=f"Bearer {token}") == [200] * 51 + [429]
    made_up = [statuses(limited, 1, Authorization=f"Bearer made-up-{n}")[0] for n in range(6)]
    assert made_up == [200] * 4 + [429] * 2


def test_limits_when_changed_then_they_hold_without_a_restart(limited: TestClient, data: Path) -> None:
    assert statuses(limited, 6)[-1] == 429
    registry(data, "settings", "--rate-address", "none", "--rate-token", "none")
    until = time.monotonic() + 60
    while statuses(limited, 1) == [429]:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert statuses(limited, 30) == [200] * 30
