"""An OIDC issuer on loopback: its configuration and keys over HTTP, tokens as a CI service makes them, and the
address at which a job asks for its own."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

REPOSITORY = "acme/kernels"
JOB_SECRET = "job-secret"


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def public_jwk(key: rsa.RSAPrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    jwk: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return {**jwk, "kid": kid, "use": "sig", "alg": "RS256", **more}


@dataclass
class Issuer:
    """`keys` are what it lists; the first one signs. `documents` counts what was asked for."""

    url: str
    keys: dict[str, rsa.RSAPrivateKey] = field(default_factory=lambda: {"one": rsa_key()})
    listed: list[dict[str, Any]] | None = None  # instead of the keys'
    configuration: dict[str, Any] | None = None
    documents: list[str] = field(default_factory=list)
    down: bool = False

    def claims(self, audience: str, **changes: Any) -> dict[str, Any]:
        """What a run of the workflow publish.yml on main says; a change to None takes a claim away."""
        now = int(time.time())
        workflow = f"{REPOSITORY}/.github/workflows/publish.yml@refs/heads/main"
        claims = {
            "iss": self.url,
            "aud": audience,
            "sub": f"repo:{REPOSITORY}:environment:hub",
            "jti": secrets.token_hex(16),
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "repository": REPOSITORY,
            "repository_owner": "acme",
            "repository_owner_id": "77",
            "workflow_ref": workflow,
            "job_workflow_ref": workflow,
            "environment": "hub",
            "ref": "refs/heads/main",
            "event_name": "push",
            "sha": "f" * 40,
            "run_id": "12345",
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, audience: str, *, kid: str | None = None, **changes: Any) -> str:
        """A token of such a run, signed by the first key or by `kid`."""
        kid = kid or next(iter(self.keys))
        return jwt.encode(self.claims(audience, **changes), self.keys[kid], "RS256", headers={"kid": kid})

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(path)
        self.documents.append(parts.path)
        if self.down:
            return 503, {}
        if parts.path == "/.well-known/openid-configuration":
            found = self.configuration or {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
            return 200, found
        if parts.path == "/keys":
            listed = [public_jwk(key, kid) for kid, key in self.keys.items()]
            return 200, {"keys": listed if self.listed is None else self.listed}
        if parts.path == "/job" and authorization == f"Bearer {JOB_SECRET}":
            return 200, {"value": self.token(parse_qs(parts.query)["audience"][0])}
        return 404, {}


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, value = issuer.answer(self.path, self.headers.get("Authorization", ""))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
