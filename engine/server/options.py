"""How a server is run: what `khub engine serve`'s arguments say beside the model."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hub_loader.errors import UsageError

if TYPE_CHECKING:
    from ..embed import Pooling

MIB = 1 << 20
LARGE_SHARE = 0.75  # of the room for bodies, which those above 64 KiB may use


@dataclass(frozen=True)
class Options:
    """`keys`: who may ask; none: everybody. `queue`: continuations that may wait. `grace`: seconds (`drain.py`).

    `max_tokens`: the most that one request may generate; None: what fits. `max_body`, `max_bodies`: bytes of a body,
    and of those of all requests under way (`bodies.py`). `name`: what clients call the model.
    """

    name: str
    keys: tuple[str, ...] = field(default=(), repr=False)
    queue: int = 1024
    max_tokens: int | None = None
    max_body: int = 8 * MIB
    max_bodies: int = 64 * MIB
    grace: float = 30.0
    metrics_token: str | None = field(default=None, repr=False)
    pooling: Pooling = "mean"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of serving."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, metavar="N", help="port (default: %(default)s; 0: any)")
    add("--name", metavar="NAME", help="what clients call the model (default: its own)")
    add(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys, one a line, of which clients have to send one (default: those in $KHUB_API_KEYS, comma "
        "between them; without any, everybody may ask)",
    )
    add("--queue", type=_count, default=1024, metavar="N", help="continuations that may wait (default: 1024)")
    add(
        "--max-tokens",
        type=_count,
        metavar="N",
        help="most that one request may generate (default: what fits)",
    )
    add("--max-body", type=_count, default=8, metavar="MIB", help="largest body of a request (default: 8)")
    add(
        "--max-bodies",
        type=_count,
        default=64,
        metavar="MIB",
        help="bodies of all requests under way, together (default: 64)",
    )
    add(
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="after SIGTERM, how long requests under way are waited for (default: 30)",
    )
    add(
        "--pooling",
        choices=("mean", "last"),
        default="mean",
        help="embeddings: the mean over a text's tokens, or its last token's (default: mean)",
    )
    add(
        "--metrics-token",
        metavar="TOKEN",
        default=os.environ.get("KHUB_METRICS_TOKEN"),
        help="let who sends it read /metrics (default: $KHUB_METRICS_TOKEN, else this machine alone may)",
    )


def options_of(args: argparse.Namespace) -> Options:
    """What the arguments say.

    Raises:
        UsageError: a key that no header can hold, an unreadable file, or limits that contradict each other.
    """
    if args.api_key_file is None:
        keys = os.environ.get("KHUB_API_KEYS", "").split(",")
    else:
        try:
            keys = args.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--api-key-file {args.api_key_file}: {error}") from None
        if not any(key.strip() for key in keys):  # an empty file would open the server to everybody
            raise UsageError(f"--api-key-file {args.api_key_file} has no key: write one on each line")
    found = tuple(key.strip() for key in keys if key.strip())
    for what, secret in (
        *(("an API key", key) for key in found),
        ("--metrics-token", args.metrics_token or "x"),
    ):
        if not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise UsageError(f"{what} has more than visible ASCII characters without spaces: choose another")
    if args.max_bodies * LARGE_SHARE < args.max_body:
        raise UsageError(
            f"--max-bodies {args.max_bodies} has no room for a body of --max-body {args.max_body} beside small ones: "
            f"give it {math.ceil(args.max_body / LARGE_SHARE)} or more"
        )
    return Options(
        name=args.name or _name_of(args.model),
        keys=found,
        queue=args.queue,
        max_tokens=args.max_tokens,
        max_body=args.max_body * MIB,
        max_bodies=args.max_bodies * MIB,
        grace=args.grace,
        metrics_token=args.metrics_token or None,
        pooling=args.pooling,
    )


def _name_of(model: str) -> str:
    """A folder's or file's name; of a model on the hub org/name."""
    return Path(model).resolve().name if Path(model).exists() else model


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400 seconds")
    return seconds
