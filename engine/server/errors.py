"""What a request can be refused with, and how each API writes that down.

OpenAI's clients look at the status, `error.type`, `error.code` and `error.param`; Anthropic's at the status and
`error.type`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError
from starlette.responses import JSONResponse

from hub_loader.errors import ComputeError, KernelHubError

from .worker import EngineFailure, GivenUp

Style = Literal["openai", "anthropic"]
_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_MOST_COMPLAINTS = 1000
_FIELD = re.compile(r"(?:the )?([a-z_]+)(?: is |=)")


class RequestError(Exception):
    """A request is answered with this status instead of what it asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or _CODES.get(status)
        self.headers = dict(headers or {})

    def body(self, style: Style) -> dict[str, Any]:
        """The JSON of an API's error."""
        if style == "anthropic":
            kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = _OPENAI.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, style: Style) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(style), self.status, self.headers)


def style_of(path: str) -> Style:
    """Which API's errors an address answers with."""
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def too_long(message: str) -> RequestError:
    """The prompt, or it and what is to be generated, is longer than the model or its cache can hold."""
    return RequestError(400, message, param="messages", code="context_length_exceeded")


def stopped() -> RequestError:
    """The server ends before the answer does."""
    return RequestError(
        503,
        "This server stopped before the answer was complete: send the request again.",
        headers={"Retry-After": "1"},
    )


def answer_to(error: Exception) -> RequestError | None:
    """How a request is answered that ended with `error`; None if nobody foresaw it."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, GivenUp):  # by the server: a sender who went away does not read it
        return stopped()
    if isinstance(error, EngineFailure | ComputeError):
        return RequestError(500, str(error))
    if isinstance(error, KernelHubError):  # of the engine: the parameters, the template or a missing extra
        found = _FIELD.match(str(error))
        return RequestError(400, str(error), param=found[1] if found else None)
    return None


def _invalid(error: ValidationError) -> RequestError:
    """What is wrong with a body: of all things the one furthest inside, for of a value that may be of several
    types every type complains."""
    if error.error_count() > _MOST_COMPLAINTS:  # as many objects, and seconds, if they were looked at
        return RequestError(400, f"The body has {error.error_count()} values or parameters that are wrong.")
    problem = max(error.errors(include_url=False, include_input=False), key=lambda each: len(each["loc"]))
    place = ".".join(str(part) for part in problem["loc"] if str(part).isalnum() or str(part).isidentifier())
    if problem["type"] == "json_invalid":
        return RequestError(400, f"The body is not JSON: {problem['ctx']['error']}.")
    if problem["type"] == "extra_forbidden":
        return RequestError(
            400, f"This server does not know the parameter {place}: leave it out.", param=place
        )
    if not place:
        return RequestError(400, problem["msg"].removeprefix("Value error, "))
    return RequestError(400, f"{place}: {problem['msg'].removeprefix('Value error, ')}", param=place)
