"""Trusted publishing against a real issuer: what a CI run gets for its token, and every token that gets nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from khub_process import Hub
from oidc_issuer import REPOSITORY, Issuer, public_jwk, rsa_key, running_issuer
from registry_command import new_token, registry, registry_json

HUB = "https://hub.example"


@pytest.fixture(scope="module")
def issuer(hub: Hub) -> Iterator[Issuer]:
    with running_issuer() as issuer:
        registry(hub.data, "settings", "--public-url", HUB)
        yield issuer


@pytest.fixture(scope="module")
def trusted(hub: Hub, issuer: Issuer) -> Issuer:
    """The issuer, with a publisher of `ci` that asks for all that can be asked for."""
    add = ["publisher", "add", "--org", "ci", "--issuer", issuer.url, "--repository", REPOSITORY]
    add += ["--workflow", "publish.yml", "--environment", "hub", "--ref", "refs/heads/*", "--owner-id", "77"]
    registry(hub.data, *add)
    return issuer


def exchange(hub: Hub, token: object, **wanted: str) -> httpx.Response:
    return httpx.post(
        f"{hub.url}/api/oidc/exchange", json={"token": token, **(wanted or {"repo": "ci/relu"})}
    )


def create(hub: Hub, token: str, org: str, name: str) -> httpx.Response:
    body = {"name": name, "organization": org, "type": "kernel"}
    return httpx.post(f"{hub.url}/api/repos/create", json=body, headers={"Authorization": f"Bearer {token}"})


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert "token" not in answer.json()


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    return b".".join(parts).decode()


def test_run_of_a_publisher_gets_a_token_of_one_repository_for_a_quarter_of_an_hour(
    hub: Hub, trusted: Issuer
) -> None:
    answer = exchange(hub, trusted.token(HUB), repo="ci/relu")
    assert answer.status_code == 200, answer.text
    token = answer.json()["token"]
    assert create(hub, token, "ci", "relu").status_code == 200
    assert create(hub, token, "ci", "gelu").status_code == 403
    assert create(hub, token, "other", "relu").status_code == 403
    headers = {"Authorization": f"Bearer {token}"}
    body = {"name": "relu", "organization": "ci"}
    gone = httpx.request("DELETE", f"{hub.url}/api/repos/delete", json=body, headers=headers)
    assert gone.status_code == 403 and "uploads for 'ci'" in gone.json()["error"]
    listed = [row for row in registry_json(hub.data, "token", "list") if row["limit"] == "ci/relu"][-1]
    created, expires = (
        time.strptime(listed[key], "%Y-%m-%dT%H:%M:%SZ") for key in ("created_at", "expires_at")
    )
    assert time.mktime(expires) - time.mktime(created) == 15 * 60
    assert (listed["kind"], listed["scope"]) == ("publisher", "write")
    who = httpx.get(f"{hub.url}/api/whoami-v2", headers=headers).json()
    assert (who["type"], who["name"], who["auth"]["accessToken"]["role"]) == ("org", "ci", "write")
    exchanged = registry_json(hub.data, "audit", "--org", "ci", "--action", "oidc.exchange")[0]
    assert (exchanged["actor"], exchanged["subject"]) == (f"oidc:{REPOSITORY}", "ci/relu")
    assert (exchanged["detail"]["run"], exchanged["detail"]["commit"]) == ("12345", "f" * 40)
    created = registry_json(hub.data, "audit", "--actor", "publisher:ci", "--action", "repo.create")
    (made,) = (row for row in created if row["subject"] == "ci/relu")
    assert made["detail"]["label"].endswith("run 12345")


def test_token_of_the_whole_organization_is_given_where_the_publisher_is_not_limited(
    hub: Hub, trusted: Issuer
) -> None:
    token = exchange(hub, trusted.token(HUB), organization="ci").json()["token"]
    assert create(hub, token, "ci", "wide").status_code == 200
    registry(
        hub.data, "publisher", "add", "--org", "narrow", "--issuer", trusted.url, "--repository", REPOSITORY,
        "--kernel", "relu",
    )  # fmt: skip
    refused(exchange(hub, trusted.token(HUB), organization="narrow"), 403, "narrow/relu alone")
    refused(exchange(hub, trusted.token(HUB), repo="narrow/gelu"), 403, "narrow/relu alone")
    assert exchange(hub, trusted.token(HUB), repo="narrow/relu").status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"aud": "https://other.example"}, 401, "another audience"),
        ({"aud": [HUB, "https://other.example"]}, 401, "another audience"),
        ({"aud": None}, 401, "aud"),
        ({"iss": "https://evil.example"}, 401, "configured for no publisher"),
        ({"iss": None}, 401, "configured for no publisher"),
        ({"exp": int(time.time()) - 120}, 401, "expired"),
        ({"exp": None}, 401, "exp"),
        ({"exp": int(time.time()) + 10**9}, 401, "longer than a day"),
        ({"nbf": int(time.time()) + 3600}, 401, "not yet valid"),
        ({"iat": int(time.time()) + 3600}, 401, "not yet valid"),
        ({"jti": None}, 401, "jti"),
        ({"jti": ""}, 401, "no id"),
        ({"repository": "evil/kernels"}, 403, "the run is of 'evil/kernels'"),
        ({"repository": "acme/kernels-evil"}, 403, "the run is of"),
        ({"repository": None}, 401, "'repository' is missing"),
        ({"repository": ["acme/kernels"]}, 401, "not text"),
        ({"repository_owner_id": "78"}, 403, "the account's number is '78'"),
        ({"environment": "staging"}, 403, "the environment is 'staging'"),
        ({"environment": None}, 403, "the environment is ''"),
        ({"ref": "refs/tags/v1"}, 403, "the reference is 'refs/tags/v1'"),
        ({"event_name": "pull_request_target"}, 403, "pull_request_target"),
        ({"event_name": "pull_request"}, 403, "pull_request"),
        (
            {"job_workflow_ref": f"{REPOSITORY}/.github/workflows/other.yml@refs/heads/main"},
            403,
            "called from another one",
        ),
        (
            {
                "workflow_ref": "evil/kernels/.github/workflows/publish.yml@refs/heads/main",
                "job_workflow_ref": None,
            },
            403,
            "the workflow is",
        ),
    ],
)  # fmt: skip
def test_token_that_says_something_else_gets_nothing(
    hub: Hub, trusted: Issuer, changes: dict[str, Any], status: int, words: str
) -> None:
    refused(exchange(hub, trusted.token(HUB, **changes)), status, words)


def test_clocks_may_differ_by_a_minute(hub: Hub, trusted: Issuer) -> None:
    now = int(time.time())
    assert exchange(hub, trusted.token(HUB, exp=now - 20)).status_code == 200
    assert exchange(hub, trusted.token(HUB, iat=now + 20, nbf=now + 20)).status_code == 200


def test_token_is_good_for_one_exchange_also_when_two_come_at_once(hub: Hub, trusted: Issuer) -> None:
    token = trusted.token(HUB)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: exchange(hub, token), range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 5
    refused(exchange(hub, token), 401, "used before")


def test_same_id_of_another_issuer_is_another_token(hub: Hub, trusted: Issuer) -> None:
    with running_issuer() as other:
        registry(
            hub.data, "publisher", "add", "--org", "ci", "--issuer", other.url, "--repository", REPOSITORY
        )
        for each in (trusted, other):
            assert exchange(hub, each.token(HUB, jti="the-same")).status_code == 200


def test_issuers_are_not_mixed_up(hub: Hub, trusted: Issuer) -> None:
    """A run vouched for by one configured issuer is no run of another's publisher."""
    with running_issuer() as other:
        registry(
            hub.data, "publisher", "add", "--org", "elsewhere", "--issuer", other.url, "--repository", "x/y"
        )
        refused(exchange(hub, other.token(HUB)), 403, f"no publisher of {other.url}")
        kid = next(iter(other.keys))
        forged = jwt.encode(trusted.claims(HUB), other.keys[kid], "RS256", headers={"kid": kid})
        refused(exchange(hub, forged), 401, "not valid")  # both call their key "one"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", None, "HS256", "RS1"])
def test_token_without_an_allowed_algorithm_gets_nothing(
    hub: Hub, trusted: Issuer, algorithm: str | None
) -> None:
    body = unsigned({"alg": algorithm, "typ": "JWT", "kid": "one"}, trusted.claims(HUB))
    answer = exchange(hub, f"{body}.")
    assert answer.status_code in (400, 401) and "token" not in answer.json()


def test_token_signed_with_the_public_key_as_a_shared_secret_gets_nothing(hub: Hub, trusted: Issuer) -> None:
    public = trusted.keys["one"].public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    body = unsigned({"alg": "HS256", "typ": "JWT", "kid": "one"}, trusted.claims(HUB))
    mac = base64.urlsafe_b64encode(hmac.new(public, body.encode(), hashlib.sha256).digest()).rstrip(b"=")
    refused(exchange(hub, f"{body}.{mac.decode()}"), 401, "'HS256' prove nothing")


def test_algorithm_is_the_keys_and_not_the_tokens(hub: Hub, trusted: Issuer) -> None:
    key = trusted.keys["one"]
    token = jwt.encode(trusted.claims(HUB), key, "PS256", headers={"kid": "one"})
    refused(exchange(hub, token), 401, "not valid")


def test_key_that_the_token_brings_along_is_not_used(hub: Hub, trusted: Issuer) -> None:
    mine = rsa_key()
    headers = {"kid": "one", "jwk": public_jwk(mine, "one"), "jku": f"{trusted.url}/mine"}
    refused(exchange(hub, jwt.encode(trusted.claims(HUB), mine, "RS256", headers=headers)), 401, "not valid")
    assert "/mine" not in trusted.documents


@pytest.mark.parametrize("kid", ["two", "../one", "", None, 1])
def test_token_of_a_key_that_is_not_listed_gets_nothing(hub: Hub, trusted: Issuer, kid: object) -> None:
    header = {"alg": "RS256", "typ": "JWT"} | ({} if kid is None else {"kid": kid})
    answer = exchange(hub, f"{unsigned(header, trusted.claims(HUB))}.c2ln")
    assert answer.status_code in (400, 401) and "token" not in answer.json()


def test_token_whose_content_was_changed_gets_nothing(hub: Hub, trusted: Issuer) -> None:
    header, _, signature = trusted.token(HUB).split(".")
    changed = unsigned({}, trusted.claims(HUB, ref="refs/heads/release")).split(".")[1]
    refused(exchange(hub, f"{header}.{changed}.{signature}"), 401, "Signature verification failed")


@pytest.mark.parametrize("token", [None, "", 7, "x", "a.b.c", "é.é.é", "x" * 20_000, {"a": 1}])
def test_what_is_no_token_is_a_bad_request(hub: Hub, trusted: Issuer, token: object) -> None:
    assert exchange(hub, token).status_code == 400


@pytest.mark.parametrize(
    "wanted",
    [{"repo": "ci"}, {"repo": "ci/"}, {"repo": "ci/../x"}, {"repo": "ci/relu", "organization": "ci"}, {"org": "ci"}],
)  # fmt: skip
def test_request_that_does_not_say_for_what_is_a_bad_request(
    hub: Hub, trusted: Issuer, wanted: dict[str, str]
) -> None:
    assert exchange(hub, trusted.token(HUB), **wanted).status_code == 400


def test_organization_without_that_publisher_gives_nothing(hub: Hub, trusted: Issuer) -> None:
    new_token(hub.data, "--org", "victim", "--write")
    refused(exchange(hub, trusted.token(HUB), repo="victim/relu"), 403, "'victim' has no publisher")
    refused(exchange(hub, trusted.token(HUB), repo="unheard-of/relu"), 403, "'unheard-of' has no publisher")


def test_upload_token_is_no_way_to_anything_else(hub: Hub, trusted: Issuer) -> None:
    token = exchange(hub, trusted.token(HUB)).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{hub.url}/api/audit?org=ci", headers=headers).status_code == 403
    assert httpx.get(f"{hub.url}/api/audit", headers=headers).status_code == 403
    assert exchange(hub, token).status_code == 400


def test_request_cannot_ask_for_more_than_uploading(hub: Hub, trusted: Issuer) -> None:
    body = {"scope": "admin", "expires": "2099-01-01", "operator": True, "only_repo": None, "org_id": 1}
    answer = httpx.post(
        f"{hub.url}/api/oidc/exchange", json={"token": trusted.token(HUB), "repo": "ci/relu", **body}
    )
    who = httpx.get(
        f"{hub.url}/api/whoami-v2", headers={"Authorization": f"Bearer {answer.json()['token']}"}
    ).json()
    assert who["auth"]["accessToken"]["role"] == "write"
    assert create(hub, answer.json()["token"], "ci", "beyond").status_code == 403


def test_publisher_when_removed_then_its_tokens_end_at_once(hub: Hub, trusted: Issuer) -> None:
    add = ["publisher", "add", "--org", "brief", "--issuer", trusted.url, "--repository", REPOSITORY]
    number = registry_json(hub.data, *add)["id"]
    token = exchange(hub, trusted.token(HUB), repo="brief/relu").json()["token"]
    assert create(hub, token, "brief", "relu").status_code == 200
    registry(hub.data, "publisher", "remove", str(number))
    assert create(hub, token, "brief", "relu").status_code == 401
    refused(exchange(hub, trusted.token(HUB), repo="brief/relu"), 403, "'brief' has no publisher")


def test_hub_that_does_not_know_its_address_takes_no_tokens(hub: Hub, trusted: Issuer) -> None:
    registry(hub.data, "settings", "--public-url", "none")
    try:
        forged = httpx.post(
            f"{hub.url}/api/oidc/exchange",
            json={"token": trusted.token("http://evil.example"), "repo": "ci/relu"},
            headers={"Host": "evil.example"},
        )
        refused(forged, 503, "--public-url")
    finally:
        registry(hub.data, "settings", "--public-url", HUB)
    assert httpx.get(f"{hub.url}/api/oidc/audience").json() == {"audience": HUB}
