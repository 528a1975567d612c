"""A token to upload with, for a CI run that stores none: the run's own OIDC token, exchanged at the registry.

GitHub Actions hands the OIDC token out to jobs with `permissions: id-token: write`. It is asked for in the
name of the hub that HF_ENDPOINT says, so no other hub can make use of it.
Source: https://docs.github.com/en/actions/reference/security/oidc
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlencode

import httpx

from hub_loader.config import load_config
from hub_loader.errors import AuthenticationError, DownloadError, UsageError

_URL, _TOKEN = "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"


def upload_token(repo_id: str, environ: Mapping[str, str] | None = None) -> str:
    """A token that uploads to `repo_id` of the hub that HF_ENDPOINT names, for 15 minutes.

    Raises:
        UsageError: the hub is the public one, which has no such exchange.
        AuthenticationError: this is no CI job with an OIDC token, or the hub does not trust it.
        DownloadError: the CI service or the hub cannot be reached, or answers what it should not.
    """
    env = os.environ if environ is None else environ
    config = load_config(env)
    if config.is_public:
        raise UsageError("--oidc is for a registry of your own: set HF_ENDPOINT to its address")
    with httpx.Client(timeout=30, follow_redirects=False) as client:
        proof = _run_token(client, env, config.endpoint)
        answer = _send(
            client,
            client.build_request(
                "POST", f"{config.endpoint}/api/oidc/exchange", json={"token": proof, "repo": repo_id}
            ),
        )
    if answer.status_code in (400, 401, 403):
        raise AuthenticationError(f"{config.endpoint} gives this run no token: {_sentence(answer)}")
    return _field(answer, "token")


def _run_token(client: httpx.Client, env: Mapping[str, str], audience: str) -> str:
    url, token = env.get(_URL), env.get(_TOKEN)
    if not url or not token:
        raise AuthenticationError(
            f"--oidc needs a GitHub Actions job with `permissions: id-token: write`, which sets {_URL} and {_TOKEN}; "
            "elsewhere set HF_TOKEN"
        )
    where = f"{url}{'&' if '?' in url else '?'}{urlencode({'audience': audience})}"
    request = client.build_request("GET", where, headers={"Authorization": f"Bearer {token}"})
    return _field(_send(client, request), "value")


def _send(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    try:
        return client.send(request)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(f"{request.url.host} cannot be reached for an upload token: {error}") from None


def _field(answer: httpx.Response, name: str) -> str:
    try:
        value = answer.json()[name] if answer.status_code == 200 else None
    except (ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, str) or not value:
        raise DownloadError(
            f"{answer.request.url.host} answered HTTP {answer.status_code} without {name!r}: {_sentence(answer)}"
        )
    return value


def _sentence(answer: httpx.Response) -> str:
    """What the other side says is wrong; nothing else of its body, which may hold a token."""
    try:
        said = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        said = None
    return (
        " ".join(said.split())[:500] if isinstance(said, str) else answer.reason_phrase or "no reason given"
    )
