"""The keys of the issuers that are configured: fetched from their JWKS, kept for a while.

A key's id that is not known asks the issuer again, at most once in `PAUSE`, so that rotation needs no wait
and made-up ids cause no traffic. Keys that are older than `LIFETIME` are never used: an issuer withdraws a
key by no longer listing it. Only signature keys with an allowed algorithm are taken; shared secrets are not.
Source: OpenID Connect Discovery 1.0, section 4; RFC 7517.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from ..errors import RequestError, unauthorized

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
LIFETIME = 600.0
PAUSE = 15.0
_PATIENCE = 10.0
_LARGEST = 256 << 10


@dataclass(frozen=True)
class _KeySet:
    fetched: float
    keys: dict[str, jwt.PyJWK]


class IssuerKeys:
    """Signature keys by issuer and key id. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._sets: dict[str, _KeySet] = {}
        self._tried: dict[str, float] = {}

    def find(self, issuer: str, kid: str) -> jwt.PyJWK:
        """The issuer's key of that id. Raises RequestError: 401 if it has none, 503 if it cannot be asked."""
        key = self._fresh(issuer).get(kid)
        if key is not None:
            return key
        if not self._lock.acquire(timeout=_PATIENCE):  # one asks, the others wait for the answer
            raise _unreachable(issuer, "it is slow")
        try:
            key = self._fresh(issuer).get(kid) or self._ask(issuer).get(kid)
        finally:
            self._lock.release()
        if key is None:
            raise unauthorized(f"{issuer} lists no signature key {kid!r}: the token is not from there.")
        return key

    def _fresh(self, issuer: str) -> dict[str, jwt.PyJWK]:
        known = self._sets.get(issuer)
        return known.keys if known is not None and self._clock() - known.fetched < LIFETIME else {}

    def _ask(self, issuer: str) -> dict[str, jwt.PyJWK]:
        """The issuer's keys of now; those known already if it was asked a moment ago."""
        now = self._clock()
        tried = self._tried.get(issuer)
        if tried is None or now - tried >= PAUSE:
            self._tried[issuer] = now
            self._sets[issuer] = _KeySet(now, _fetch(issuer))
        elif not self._fresh(issuer):
            raise _unreachable(issuer, "it did not answer a moment ago")
        return self._fresh(issuer)


def _fetch(issuer: str) -> dict[str, jwt.PyJWK]:
    with httpx.Client(timeout=5, follow_redirects=False, trust_env=True) as client:
        about = _get(client, issuer, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if about.get("issuer") != issuer:
            raise _unreachable(issuer, f"its configuration is that of {about.get('issuer')!r}")
        where = about.get("jwks_uri")
        if not isinstance(where, str) or urlsplit(where).scheme not in ("https", urlsplit(issuer).scheme):
            raise _unreachable(issuer, f"its jwks_uri is {where!r}")
        listed = _get(client, issuer, where).get("keys")
    if not isinstance(listed, list):
        raise _unreachable(issuer, "its key set has no list of keys")
    return _usable(listed)


def _usable(listed: list[Any]) -> dict[str, jwt.PyJWK]:
    """Keys by id: an id that two keys claim is nobody's, because either could be meant."""
    keys: dict[str, jwt.PyJWK] = {}
    twice = set()
    for entry in listed:
        kid = entry.get("kid") if isinstance(entry, dict) else None
        if not isinstance(kid, str) or entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
            continue
        try:
            key = jwt.PyJWK(entry)
        except jwt.PyJWTError:
            continue  # of a kind that this library does not know
        if key.algorithm_name in ALGORITHMS:
            twice.update({kid} & keys.keys())
            keys[kid] = key
    return {kid: key for kid, key in keys.items() if kid not in twice}


def _get(client: httpx.Client, issuer: str, url: str) -> dict[str, Any]:
    body = bytearray()
    try:
        with client.stream("GET", url) as answer:
            if answer.status_code != 200:
                raise _unreachable(issuer, f"{url} answers {answer.status_code}")
            until = time.monotonic() + _PATIENCE
            for chunk in answer.iter_bytes():
                body += chunk
                if time.monotonic() > until:
                    raise _unreachable(issuer, f"{url} takes longer than {_PATIENCE:g} s")
                if len(body) > _LARGEST:
                    raise _unreachable(issuer, f"{url} answers more than {_LARGEST} bytes")
        value = json.loads(body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(issuer, f"{url}: {error}") from None
    except (ValueError, RecursionError):
        raise _unreachable(issuer, f"{url} answers no JSON") from None
    if not isinstance(value, dict):
        raise _unreachable(issuer, f"{url} answers no JSON object")
    return value


def _unreachable(issuer: str, why: str) -> RequestError:
    return RequestError(
        503, f"The issuer {issuer} cannot be asked for its keys: {why}. Try again in a minute."
    )
