"""What is taken for a secret, who may scrape, how often is counted: without a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import RequestError
from registry.names import RepoName
from registry.store import Store
from registry.telemetry.metrics_page import check_scraper
from registry.telemetry.redact import redact
from registry.telemetry.request_id import request_id
from registry.telemetry.stored import StoredCollector

SECRET = "khub_" + "aB3-_" * 8


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {}",
        "GET /x?size=3&signature={}&until=4",
        "https://bucket/key?X-Amz-Signature={}",
        "postgresql://hub:{}@db:5432/hub",
        "said 'bearer {}'",
    ],
)
@pytest.mark.parametrize("secret", ["0123456789abcdef", SECRET, "p%20w"])
def test_redact_when_a_secret_stands_where_secrets_do_then_it_is_hidden(text: str, secret: str) -> None:
    hidden = redact(text.format(secret))
    assert hidden == text.format("[hidden]")


@pytest.mark.parametrize("secret", [SECRET, "hf_" + "a1" * 17, "eyJhbGciOiJ.eyJzdWIiOiJ4.c2ln"])
def test_redact_when_a_token_stands_anywhere_then_it_is_hidden(secret: str) -> None:
    assert redact(f"/org/{secret}/x {secret}") == "/org/[hidden]/x [hidden]"


@given(st.from_regex(r"(/[a-z][a-z0-9_.-]{0,19}){1,6}", fullmatch=True))
def test_redact_when_a_path_has_no_secret_then_it_stays(path: str) -> None:
    assert redact(path) == path


@given(st.lists(st.tuples(st.sampled_from([b"x-request-id", b"x-amzn-trace-id"]), st.binary(max_size=200))))
def test_request_id_for_any_headers_is_short_and_sane(headers: list[tuple[bytes, bytes]]) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._=;:-]{1,128}", request_id(headers))


def scrape(address: str, token: str | None = None, **headers: str) -> int:
    """The status that a scraper gets."""
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    try:
        check_scraper({"client": (address, 1), "headers": sent}, token)
    except RequestError as refused:
        return refused.status
    return 200


def test_scraper_without_a_token_set_has_to_be_of_this_machine_and_not_behind_a_proxy() -> None:
    assert {scrape(address) for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")} == {200}
    assert {scrape(address) for address in ("192.0.2.1", "::ffff:192.0.2.1", "unknown", "")} == {403}
    assert scrape("127.0.0.1", forwarded="for=127.0.0.1") == 403
    assert scrape("127.0.0.1", x_forwarded_for="127.0.0.1") == 403


def test_scraper_with_a_token_set_has_to_send_it_from_anywhere() -> None:
    assert scrape("127.0.0.1", "s3cret") == 401
    assert scrape("192.0.2.1", "s3cret", authorization="Bearer s3cret") == 200
    assert {scrape("192.0.2.1", "s3cret", authorization=a) for a in ("s3cret", "Bearer s", "Bearer é")} == {
        401
    }


def test_stored_when_asked_again_within_a_minute_then_it_is_not_counted_again(tmp_path: Path) -> None:
    now = [0.0]
    store = Store(tmp_path)
    collector = StoredCollector(store, tmp_path, clock=lambda: now[0])

    def repositories() -> float:
        (found,) = (metric for metric in collector.collect() if metric.name == "khub_stored_repositories")
        return found.samples[0].value

    assert repositories() == 0
    store.create_repo(RepoName("acme", "relu"), "acme")
    now[0] = 59
    assert repositories() == 0
    now[0] = 61
    assert repositories() == 1
    store.close()
