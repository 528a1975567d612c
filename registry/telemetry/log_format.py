"""How log records are written to stderr: JSON, an object on each line, or text. Secrets are taken out of both."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, Literal

from .redact import redact
from .request_id import CURRENT

LogFormat = Literal["json", "text"]
FIELDS = "khub_fields"  # the attribute of a record that holds its structured part
_QUIET = ("httpx", "httpcore", "alembic", "uvicorn.access")  # they speak of each request or start at INFO


def configure(log_format: LogFormat, *, requests: bool) -> None:
    """Send the process's log to stderr; with `requests` a line for each, otherwise warnings and errors alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO if requests else logging.WARNING, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, `request_id` within a request, the record's fields, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := CURRENT.get()) is not None:
            line["request_id"] = current
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({name: redact(v) if isinstance(v, str) else v for name, v in line.items()})


class TextLines(logging.Formatter):
    """Time (UTC), level, request id within a request, message, and below it the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record).strftime("%Y-%m-%d %H:%M:%S"), record.levelname]
        if (current := CURRENT.get()) is not None:
            parts.append(current)
        text = " ".join([*parts, _one_line(record.getMessage())])
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return redact(text)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, timezone.utc)


def _one_line(message: str) -> str:
    """Nobody who sends a request begins a line of the log."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in message)
