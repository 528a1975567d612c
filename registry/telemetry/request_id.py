"""The id of a request: the sender's where it is sane, else one of ours; in its log lines and in its answer.

The Hub's clients send `X-Amzn-Trace-Id`, and show the `X-Request-Id` of an answer in their errors.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar

from .redact import redact

CURRENT: ContextVar[str | None] = ContextVar("request_id", default=None)
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=;:-]{0,127}")


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id of a request with these headers (names in lower case). What looks like a secret is not taken."""
    sent = {name: value.decode("latin-1") for name, value in headers}
    for name in (b"x-request-id", b"x-amzn-trace-id"):
        value = sent.get(name, "")
        if _SANE.fullmatch(value) and redact(value) == value:
            return value
    return secrets.token_hex(16)
