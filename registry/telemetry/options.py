"""How a server is operated: `khub serve`'s arguments beside where the data is."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field

from hub_loader.errors import UsageError

from .log_format import LogFormat


@dataclass(frozen=True)
class Options:
    """`requests`: whether each has a line in the log. `notice` and `grace`: seconds (`drain.py`).

    `proxies`: the addresses whose X-Forwarded-For and -Proto are believed, as uvicorn reads them; None is its default.
    """

    log_format: LogFormat = "text"
    requests: bool = False
    metrics_token: str | None = field(default=None, repr=False)
    notice: float = 0.0
    grace: float = 30.0
    proxies: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of operation."""
    group = parser.add_argument_group("operation")
    group.add_argument("--verbose", action="store_true", help="log every request to stderr")
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        help="how the log is written; with it every request is logged (default: text, warnings alone)",
    )
    group.add_argument(
        "--metrics-token",
        metavar="TOKEN",
        default=os.environ.get("KHUB_METRICS_TOKEN"),
        help="let who sends it read /metrics (default: $KHUB_METRICS_TOKEN, else this machine alone may)",
    )
    group.add_argument(
        "--notice",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="after SIGTERM, how long new requests are still answered while /readyz says 503 (default: 0)",
    )
    group.add_argument(
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="after SIGTERM, how long requests under way are waited for (default: 30)",
    )
    group.add_argument(
        "--forwarded-allow-ips",
        metavar="ADDRESSES",
        help="proxies whose X-Forwarded-* headers are believed (default: $FORWARDED_ALLOW_IPS, else 127.0.0.1)",
    )


def options_of(args: argparse.Namespace) -> Options:
    """What the arguments say. Raises UsageError for a metrics token that no header can hold."""
    token: str | None = args.metrics_token or None
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("--metrics-token takes visible ASCII characters without spaces: choose another.")
    return Options(
        log_format=args.log_format or "text",
        requests=args.verbose or args.log_format is not None,
        metrics_token=token,
        notice=args.notice,
        grace=args.grace,
        proxies=args.forwarded_allow_ips,
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400 seconds")
    return seconds
