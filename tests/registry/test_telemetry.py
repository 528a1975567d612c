"""What operators see of a running server: health, metrics, logs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from observed_hub import ObservedHub, commit_body, end, start_observed, until

from registry.place import Place, open_blobs
from registry.store import Store
from registry.telemetry.ready import Readiness

NEW = {"organization": "acme", "name": "relu", "type": "kernel"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObservedHub]:
    started = start_observed(tmp_path_factory.mktemp("observed"), "--log-format", "json")
    yield started
    end(started)


@pytest.fixture(scope="module")
def token(hub: ObservedHub) -> str:
    """A token of acme, which has the kernel acme/relu with one file."""
    secret = hub.token("acme")
    owner = {"Authorization": f"Bearer {secret}"}
    assert httpx.post(f"{hub.url}/api/repos/create", headers=owner, json=NEW).status_code == 200
    address = f"{hub.url}/api/kernels/acme/relu/commit/main"
    body = commit_body("a.txt", b"x" * 1000)
    assert httpx.post(address, headers=owner, content=body).status_code == 200
    return secret


def test_metrics_when_a_commit_was_made_then_it_is_counted_by_route_and_not_by_name(
    hub: ObservedHub, token: str
) -> None:
    assert httpx.get(f"{hub.url}/kernels/acme/relu/resolve/main/a.txt").content == b"x" * 1000
    httpx.get(f"{hub.url}/kernels/made-up-{token[:8]}/x/y/z")
    samples = hub.metrics()
    resolve, commit = (
        f"/{{kind}}/{{org}}/{{name}}{rest}" for rest in ("/resolve/{revision}/{path}", "/commit/{revision}")
    )
    assert samples[f'khub_requests_total{{method="GET",route="{resolve}",status="200"}}'] == 1
    assert samples[f'khub_requests_total{{method="POST",route="/api{commit}",status="200"}}'] == 1
    assert samples[f'khub_request_seconds_count{{method="GET",route="{resolve}"}}'] == 1
    assert samples[f'khub_response_bytes_total{{route="{resolve}"}}'] == 1000
    assert samples[f'khub_request_bytes_total{{route="/api{commit}"}}'] == len(
        commit_body("a.txt", b"x" * 1000)
    )
    assert samples["khub_commits_accepted_total"] == 1
    assert samples["khub_requests_in_flight"] == 1  # this one
    stored = {name: samples[f"khub_stored_{name}"] for name in ("repositories", "commits", "blobs")}
    assert stored == {"repositories": 1, "commits": 2, "blobs": 1}
    assert samples["khub_stored_bytes"] == 1000
    assert samples["khub_data_free_bytes"] > 0
    assert any(name.startswith("khub_build_info{") for name in samples)
    assert not any("acme" in name or "made-up" in name for name in samples)


def test_metrics_when_the_request_came_through_a_proxy_then_they_are_refused(hub: ObservedHub) -> None:
    for header in ("X-Forwarded-For", "Forwarded", "Via"):
        refused = httpx.get(f"{hub.url}/metrics", headers={header: "127.0.0.1"})
        assert refused.status_code == 403 and "--metrics-token" in refused.json()["error"]


def test_request_id_when_sent_and_sane_then_it_comes_back_and_otherwise_a_new_one(hub: ObservedHub) -> None:
    def answered(headers: dict[str, str]) -> str:
        return httpx.get(f"{hub.url}/healthz", headers=headers).headers["x-request-id"]

    assert answered({"X-Request-Id": "deploy-7.1"}) == "deploy-7.1"
    assert answered({"X-Amzn-Trace-Id": "Root=1-67891233-abcdef"}) == "Root=1-67891233-abcdef"
    assert answered({"X-Request-Id": "a", "X-Amzn-Trace-Id": "b"}) == "a"
    for not_sane in ("x" * 129, "a b", "é", "khub_" + "s" * 43):
        assert re.fullmatch("[0-9a-f]{32}", answered({"X-Request-Id": not_sane.encode()}))  # type: ignore[dict-item]
    missing = httpx.get(f"{hub.url}/nobody/nothing/resolve/main/x", headers={"X-Request-Id": "here"})
    assert (missing.status_code, missing.headers["x-request-id"]) == (404, "here")


def test_log_when_json_then_each_request_is_one_object_with_its_id(hub: ObservedHub, token: str) -> None:
    owner = {"Authorization": f"Bearer {token}", "X-Request-Id": "log-1", "User-Agent": "ours\t1"}
    httpx.get(f"{hub.url}/api/whoami-v2?expand=x", headers=owner)
    until(lambda: any(line.get("request_id") == "log-1" for line in hub.lines()))
    (line,) = (line for line in hub.lines() if line.get("request_id") == "log-1")
    assert (
        line.items()
        >= {
            "level": "info",
            "method": "GET",
            "path": "/api/whoami-v2",
            "route": "/api/whoami-v2",
            "status": 200,
            "client": "127.0.0.1",
            "account": "org:acme",
            "bytes_in": 0,
        }.items()
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_log_when_secrets_come_in_every_place_then_none_is_in_it(hub: ObservedHub, token: str) -> None:
    owner = {"Authorization": f"Bearer {token}"}
    oid = "a" * 64
    objects = {"operation": "upload", "objects": [{"oid": oid, "size": 3}]}
    batch = httpx.post(f"{hub.url}/acme/relu.git/info/lfs/objects/batch", headers=owner, json=objects).json()
    href = batch["objects"][0]["actions"]["upload"]["href"]
    signature = href.rpartition("signature=")[2]
    assert httpx.put(href, content=b"abc").status_code == 400  # not what was announced: an error as well
    httpx.get(f"{hub.url}/{token}/{token}", params={"token": token})
    httpx.get(f"{hub.url}/", headers={"User-Agent": token, "X-Request-Id": token, "Referer": token})
    httpx.post(f"{hub.url}/-/login", data={"token": token}, headers={"Origin": hub.url})
    httpx.get(f"{hub.url}/healthz", headers={"X-Request-Id": "last"})
    until(lambda: '"last"' in hub.log.read_text())
    log = hub.log.read_text()
    assert len(signature) == 64 and signature not in log
    assert token not in log and token[5:] not in log
    assert log.count("[hidden]") >= 2  # in the place of the path's and of the User-Agent's


def test_log_when_the_server_fails_then_the_answer_and_the_traceback_have_the_requests_id(
    hub: ObservedHub, token: str
) -> None:
    owner = {"Authorization": f"Bearer {token}"}
    content = b"soon gone"
    address = f"{hub.url}/api/kernels/acme/relu/commit/main"
    assert httpx.post(address, headers=owner, content=commit_body("b.txt", content)).status_code == 200
    (hub.data / "blobs" / hashlib.sha256(content).hexdigest()).unlink()
    failed = httpx.get(
        f"{hub.url}/kernels/acme/relu/resolve/main/b.txt", headers={"X-Request-Id": "failed-1"}
    )
    assert (failed.status_code, failed.headers["x-request-id"]) == (500, "failed-1")
    until(lambda: "Traceback" in hub.log.read_text())
    (line,) = (line for line in hub.lines() if "error" in line)
    assert (line["request_id"], line["level"]) == ("failed-1", "error")


def test_readyz_when_the_storage_is_gone_then_503_says_so_and_the_log_why(
    hub: ObservedHub, token: str
) -> None:
    ready = httpx.get(f"{hub.url}/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
    blobs = hub.data / "blobs"
    blobs.rename(hub.data / "elsewhere")
    try:
        until(lambda: httpx.get(f"{hub.url}/readyz").status_code == 503)
        (reason,) = httpx.get(f"{hub.url}/readyz").json()["reasons"]
        assert "storage" in reason and str(hub.data) not in reason
        assert str(blobs) in hub.log.read_text()
        assert httpx.get(f"{hub.url}/healthz").text == "ok"
    finally:
        (hub.data / "elsewhere").rename(blobs)
    until(lambda: httpx.get(f"{hub.url}/readyz").status_code == 200)


async def _reasons(place: Place, *, gone: bool) -> list[str]:
    store = Store(place.data, place.database)
    readiness = Readiness(store, open_blobs(place, store))
    if gone:
        store.close()
        shutil.rmtree(place.data)
    found = await readiness.reasons()
    readiness.close()
    store.close()
    return found


def test_readyz_when_database_and_storage_do_not_answer_then_both_are_reasons(place: Place) -> None:
    assert asyncio.run(_reasons(place, gone=False)) == []
    if place.database is None:
        database, storage = asyncio.run(_reasons(place, gone=True))
        assert "database" in database and "storage" in storage


def test_metrics_token_when_set_then_it_is_what_counts(tmp_path: Path) -> None:
    hub = start_observed(tmp_path, "--metrics-token", "scraper-1")
    try:
        assert httpx.get(f"{hub.url}/metrics").status_code == 401
        owner = {"Authorization": "Bearer scraper-1", "X-Forwarded-For": "192.0.2.1"}
        assert hub.metrics(owner)["khub_requests_in_flight"] == 1
        openmetrics = {**owner, "Accept": "application/openmetrics-text; version=1.0.0"}
        assert httpx.get(f"{hub.url}/metrics", headers=openmetrics).text.endswith("# EOF\n")
        assert hub.stop() == 0
        assert hub.log.read_text() == ""
    finally:
        end(hub)


def test_log_when_text_then_a_request_is_one_line(tmp_path: Path) -> None:
    hub = start_observed(tmp_path, "--verbose")
    try:
        httpx.get(f"{hub.url}/healthz", headers={"X-Request-Id": "text-1"})
        until(lambda: "text-1" in hub.log.read_text())
        (line,) = (line for line in hub.log.read_text().splitlines() if "text-1" in line)
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO text-1 GET /healthz 200 \S+s 0\+2 127.0.0.1", line
        )
        with pytest.raises(json.JSONDecodeError):
            json.loads(line)
    finally:
        end(hub)
