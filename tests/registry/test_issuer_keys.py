"""The keys of an issuer: rotated, withdrawn, unreachable, malformed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from oidc_issuer import Issuer, public_jwk, rsa_key, running_issuer

from registry.errors import RequestError
from registry.oidc.keys import LIFETIME, PAUSE, IssuerKeys
from registry.oidc.verify import verify


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(clock: Clock) -> IssuerKeys:
    return IssuerKeys(clock)


def refusal(keys: IssuerKeys, issuer: Issuer, kid: str) -> int:
    with pytest.raises(RequestError) as refused:
        keys.find(issuer.url, kid)
    return refused.value.status


def test_keys_are_fetched_once_while_they_are_fresh(keys: IssuerKeys, issuer: Issuer, clock: Clock) -> None:
    for _ in range(3):
        assert keys.find(issuer.url, "one").key_id == "one"
    assert issuer.documents.count("/keys") == 1
    clock.now += LIFETIME
    keys.find(issuer.url, "one")
    assert issuer.documents.count("/keys") == 2


def test_key_that_is_new_is_found_as_soon_as_a_token_names_it(
    keys: IssuerKeys, issuer: Issuer, clock: Clock
) -> None:
    keys.find(issuer.url, "one")
    issuer.keys["two"] = rsa_key()
    clock.now += PAUSE
    assert keys.find(issuer.url, "two").key_id == "two"


def test_ids_that_are_made_up_do_not_make_the_hub_ask_again_and_again(
    keys: IssuerKeys, issuer: Issuer, clock: Clock
) -> None:
    for number in range(20):
        assert refusal(keys, issuer, f"made-up-{number}") == 401
    assert issuer.documents.count("/keys") == 1
    clock.now += PAUSE
    assert refusal(keys, issuer, "made-up") == 401
    assert issuer.documents.count("/keys") == 2
    assert keys.find(issuer.url, "one").key_id == "one"


def test_key_that_is_withdrawn_ends_with_the_copy_of_it(
    keys: IssuerKeys, issuer: Issuer, clock: Clock
) -> None:
    keys.find(issuer.url, "one")
    issuer.keys = {"two": rsa_key()}
    clock.now += LIFETIME
    assert refusal(keys, issuer, "one") == 401


def test_issuer_that_is_down_costs_a_503_once_the_copy_is_old_and_is_not_asked_at_once_again(
    keys: IssuerKeys, issuer: Issuer, clock: Clock
) -> None:
    keys.find(issuer.url, "one")
    issuer.down = True
    clock.now += LIFETIME - 1
    keys.find(issuer.url, "one")
    clock.now += 1
    asked = len(issuer.documents)
    assert [refusal(keys, issuer, "one") for _ in range(3)] == [503] * 3
    assert len(issuer.documents) == asked + 1
    issuer.down = False
    clock.now += PAUSE
    keys.find(issuer.url, "one")


@pytest.mark.parametrize(
    "configuration",
    [
        {"issuer": "https://other.example", "jwks_uri": "https://other.example/keys"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "ftp://127.0.0.1/keys"},
        {"jwks_uri": "http://127.0.0.1:1/keys"},
        {"padding": "x" * 300_000},
    ],
)
def test_issuer_whose_configuration_is_wrong_is_not_believed(
    keys: IssuerKeys, issuer: Issuer, configuration: dict[str, Any]
) -> None:
    issuer.configuration = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"} | configuration
    assert refusal(keys, issuer, "one") == 503


def test_keys_of_no_use_are_passed_over(keys: IssuerKeys, issuer: Issuer) -> None:
    good = rsa_key()
    curve = json.loads(
        jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())
    )
    issuer.listed = [
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        public_jwk(rsa_key(), "encrypting", use="enc"),
        public_jwk(rsa_key(), "old", alg="RSA1_5"),
        {**public_jwk(good, ""), "kid": 7},
        "text",
        public_jwk(rsa_key(), "twice"),
        public_jwk(good, "twice"),
        public_jwk(good, "good"),
        {**curve, "kid": "curve"},
    ]
    assert keys.find(issuer.url, "good").algorithm_name == "RS256"
    assert keys.find(issuer.url, "curve").algorithm_name == "ES256"
    for kid in ("secret", "broken", "encrypting", "old", "", "twice"):
        assert refusal(keys, issuer, kid) == 401


def test_key_that_is_too_short_proves_nothing(keys: IssuerKeys, issuer: Issuer) -> None:
    issuer.keys = {"short": rsa_key(1024)}
    with pytest.raises(RequestError, match="key") as refused:
        verify(issuer.token("https://hub.example"), {issuer.url}, "https://hub.example", keys)
    assert refused.value.status == 401


def test_verify_gives_the_claims_of_a_token_that_holds(keys: IssuerKeys, issuer: Issuer) -> None:
    claims = verify(issuer.token("https://hub.example"), {issuer.url}, "https://hub.example", keys)
    assert claims["repository"] == "acme/kernels"
