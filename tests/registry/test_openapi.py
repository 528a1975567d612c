"""The protocol's description, and requests made up from it: whatever is sent, the server answers and does not fail."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from khub_process import Hub

from registry import openapi
from registry.app import _routes


def test_description_when_made_then_every_handler_with_a_body_is_there_and_has_a_sentence() -> None:
    made = openapi.description(_routes())
    operations = [operation for path in made["paths"].values() for operation in path.values()]
    names = {operation["operationId"].rpartition("-")[0] for operation in operations}
    described = {*openapi._BODIES, *openapi._RAW, *openapi._QUERIES}
    assert described <= names, "a body or query of a handler that does not exist"
    assert all(operation["summary"].endswith(".") for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    changing = [
        operation["operationId"].rpartition("-")[0]
        for path in made["paths"].values()
        for method, operation in path.items()
        if method in ("post", "put")
    ]
    assert {*changing} - described == {"ask_access", "no_comments"}, "handlers that read no body"


@pytest.fixture(scope="module")
def web(hub: Hub) -> Iterator[httpx.Client]:
    """A client with a token of the organization `fuzz`, which has a repository `k` with a pull request."""
    with httpx.Client(base_url=hub.url, headers={"Authorization": f"Bearer {hub.token('fuzz')}"}) as client:
        client.post("/api/repos/create", json={"name": "k", "organization": "fuzz"})
        value = {"path": "a.txt", "content": base64.b64encode(b"x").decode(), "encoding": "base64"}
        lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "file", "value": value}]
        body = "\n".join(map(json.dumps, lines))
        for query in ("", "?create_pr=1"):
            assert client.post(f"/api/models/fuzz/k/commit/main{query}", content=body).status_code == 200
        client.put("/api/models/fuzz/k/settings", json={"gated": "manual"})
        yield client


def test_openapi_when_served_then_it_is_the_description(web: httpx.Client) -> None:
    assert web.get("/openapi.json").json() == json.loads(json.dumps(openapi.description(_routes())))


# Values that are there, beside those that are made up, so that requests get past the first question.
_KNOWN: dict[str, list[Any]] = {
    "org": ["fuzz"],
    "name": ["k", "k", "other"],
    "organization": ["fuzz"],
    "revision": ["main", "refs/pr/1", "v9"],
    "branch": ["main", "v1", "a..b"],
    "path": ["a.txt", "a", "../a", "\x00"],
    "num": ["1", "2", "99999999999999999999"],
    "user": ["stranger"],
    "fromRepo": ["fuzz/other"],
    "toRepo": ["fuzz/other"],
    "limit": [0, 1, 10**30, -1],
    "cursor": ["", "a", "0" * 40, "\x00"],
    "tag": ["t"],
}


_OPERATIONS = ["file", "lfsFile", "deletedFile", "deletedFolder", "header", "copyFile"]
_VALUE = {
    "path": {"type": "string"},
    "content": {"enum": ["", "QUJD", "%", "QUJ"]},
    "encoding": {"enum": ["base64", "utf-8", "x"]},
    "oid": {"enum": ["0" * 64, "../x"]},
    "size": {"type": "integer"},
    "summary": {"type": "string"},
    "parentCommit": {"enum": ["0" * 40, "x"]},
}
_LINE = {
    "type": "object",
    "properties": {"key": {"enum": _OPERATIONS}, "value": {"type": "object", "properties": _VALUE}},
    "required": ["key", "value"],
}
_COMMIT = {"application/x-ndjson": {"schema": {"type": "array", "items": _LINE, "minItems": 1}}}


def _with_known(node: Any) -> Any:
    """The description with known values for the parameters and properties that have any."""
    if isinstance(node, list):
        return [_with_known(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("in") in ("path", "query") and node["name"] in _KNOWN:
        return node | {"schema": {"anyOf": [{"enum": _KNOWN[node["name"]]}, node["schema"]]}}
    made = {key: _with_known(value) for key, value in node.items()}
    if isinstance(made.get("properties"), dict):
        for key in made["properties"].keys() & _KNOWN.keys():
            made["properties"][key] = {"anyOf": [{"enum": _KNOWN[key]}, made["properties"][key]]}
    return made


def _probe(operation: Any, web: httpx.Client) -> set[int]:
    """Send requests that fit an operation's description and some that do not; returns the answers' statuses."""
    from schemathesis import GenerationMode

    documented = {int(status) for status in operation.definition.raw["responses"] if status.isdigit()} | {501}
    asked: set[int] = set()
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)

    @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def run(case: Any) -> None:
        answer = case.call(base_url=str(web.base_url), headers=dict(web.headers), timeout=30)
        asked.add(answer.status_code)
        sent = (case.as_curl_command(), answer.text)
        assert answer.status_code < 500 or answer.status_code in documented, sent
        if answer.status_code >= 400 and b"Invalid HTTP request" not in answer.content:
            assert answer.headers["x-error-message"], sent
        if answer.status_code == 501:
            assert answer.headers["x-error-code"] == ["NotImplemented"], sent

    run()
    return asked


@pytest.mark.slow
def test_server_when_requests_are_made_up_from_the_description_then_it_never_fails(web: httpx.Client) -> None:
    import schemathesis

    @schemathesis.serializer("application/x-ndjson")
    def lines(_context: object, value: Any) -> bytes:
        if not isinstance(value, list):
            return str(value).encode("utf-8", "surrogatepass")
        return b"\n".join(json.dumps(item).encode() for item in value)

    raw = _with_known(openapi.description(_routes()))
    raw["paths"]["/api/{kind}/{org}/{name}/commit/{revision}"]["post"]["requestBody"]["content"] = _COMMIT
    described = schemathesis.openapi.from_dict(raw)
    asked: set[int] = set()
    failed = []
    for operation in (found.ok() for found in described.get_all_operations()):
        if operation.definition.raw["operationId"].startswith("delete_repo"):
            continue  # the repository that the others need
        try:
            asked |= _probe(operation, web)
        except AssertionError as error:
            failed.append(error.args[0])
    assert failed == []
    assert {200, 400, 404} <= asked
