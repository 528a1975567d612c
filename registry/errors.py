"""A refused request: the status and code a client acts on, and the sentence a person reads.

The codes are the Hub's (`X-Error-Code`); stock clients turn them into their own exception types.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from hub_loader.errors import RegistryError


class RequestError(RegistryError):
    """A request the registry refuses, with its HTTP status.

    `code` goes into `X-Error-Code`. `title`, where given, takes the message's place in `X-Error-Message`:
    clients compare that header with fixed sentences. `body` adds keys to the JSON answer, `headers` to its head.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        title: str | None = None,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.title = title
        self.body = body or {}
        self.headers = headers or {}

    def response(self) -> JSONResponse:
        """The answer: `{"error": message}` and the two error headers."""
        title = " ".join((self.title or self.message).split())
        headers = {**self.headers, "X-Error-Message": title.encode("ascii", "replace").decode()}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": self.message, **self.body}, self.status, headers)


class RepoMovedError(RequestError):
    """307: the repository has another name now; `app` turns it into a redirect of the same request."""

    def __init__(self, old: str, org: str, name: str) -> None:
        super().__init__(307, f"{old!r} is called '{org}/{name}' now: ask for that.")
        self.old, self.org, self.name = old, org, name


def bad_request(message: str) -> RequestError:
    """400: the request itself is malformed or names something no repository can hold."""
    return RequestError(400, message, code="BadRequest")


def unauthorized(message: str) -> RequestError:
    """401. With any other title, clients report a 401 as a repository that does not exist."""
    return RequestError(401, message, title="Invalid credentials in Authorization header")


def forbidden(message: str) -> RequestError:
    """403: the token is good, but not for this."""
    return RequestError(403, message, code="Forbidden")


def gated(message: str, *, known: bool) -> RequestError:
    """403, or 401 to who is not `known`: the repository is there, access has to be asked for."""
    return RequestError(403 if known else 401, message, code="GatedRepo")


def repo_not_found(repo: str) -> RequestError:
    """404 for `org/name`."""
    return RequestError(
        404, f"No repository {repo!r} on this hub: create it first, or check its name.", code="RepoNotFound"
    )


def revision_not_found(repo: str, revision: str) -> RequestError:
    """404 for a branch, tag or commit."""
    message = f"{repo!r} has no branch, tag or commit {revision!r}: list them at /api/kernels/{repo}/refs."
    return RequestError(404, message, code="RevisionNotFound")


def entry_not_found(message: str) -> RequestError:
    """404 for a path inside a revision."""
    return RequestError(404, message, code="EntryNotFound")


def conflict(message: str, **body: Any) -> RequestError:
    """409: it exists already."""
    return RequestError(409, message, code="Conflict", body=body)


def not_implemented(message: str) -> RequestError:
    """501: the Hub has this, this registry has not."""
    return RequestError(501, message, code="NotImplemented")


def unavailable(message: str) -> RequestError:
    """503: something behind this server does not answer; the same request may succeed later."""
    return RequestError(503, message)
