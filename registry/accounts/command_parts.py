"""What the commands of the registry's accounts share: transactions, answers, parsers, sizes and times."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hub_loader.errors import RegistryError, UsageError

from ..errors import RequestError
from ..locks import COLLISION, is_collision
from ..place import open_store

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

Parsers = Any  # argparse's type for what add_subparsers returns is private


@contextmanager
def changing(args: argparse.Namespace) -> Iterator[Session]:
    """A transaction on the registry's database; a refusal is a wrong argument here.

    Raises RegistryError if another change was faster.
    """
    store = open_store(args)
    try:
        with store.write() as session:
            yield session
    except RequestError as error:
        raise UsageError(error.message) from None
    except IntegrityError as error:
        if not is_collision(error):
            raise
        raise RegistryError(COLLISION) from None
    finally:
        store.close()


@contextmanager
def reading(args: argparse.Namespace) -> Iterator[Session]:
    """A view of the registry's database."""
    store = open_store(args)
    try:
        with store.read() as session:
            yield session
    finally:
        store.close()


def say(args: argparse.Namespace, value: Any, text: str) -> int:
    """Print `value` as JSON where it is asked for, else `text`."""
    print(json.dumps(value, indent=2, default=_plain) if args.json else text)
    return 0


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z"
    raise TypeError(f"{value!r} has no JSON")


def verb(
    verbs: Parsers,
    common: argparse.ArgumentParser,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str = "",
    description: str = "",
) -> argparse.ArgumentParser:
    """Add one verb of a noun, with a help that shows an example; `description`: what it says before that."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        parents=[common],
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def noun(nouns: Parsers, name: str, summary: str) -> Parsers:
    """Add a noun; returns where its verbs go."""
    parser = nouns.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    return parser.add_subparsers(metavar="VERB", required=True)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the three limits; `none` goes back to the hub's default, or to no limit."""
    for option, name, help_text in (
        ("--bytes", "quota_bytes", "all its files together: 500M, 50G, none"),
        ("--max-file", "max_file_bytes", "the largest file: 2G, none"),
        ("--max-files", "max_commit_files", "files that a commit may change"),
    ):
        parser.add_argument(
            option, dest=name, type=size, metavar="SIZE", default=argparse.SUPPRESS, help=help_text
        )


def size(text: str) -> int | None:
    """A number of bytes (or files): `1024`, `50G` (powers of 1,024); `none`. Raises argparse's error."""
    if text.lower() == "none":
        return None
    number, unit = text[:-1], text[-1:].upper()
    if unit not in "KMGT":
        number, unit = text, ""
    if not (number.isascii() and number.isdigit() and len(number) < 13):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 1048576, 500M, 50G or none")
    return min(int(number) << (10 * (" KMGT".index(unit) if unit else 0)), (1 << 63) - 1)


def duration(text: str) -> timedelta:
    """`30m`, `12h`, `90d`, `8w`. Raises argparse's error."""
    found = re.fullmatch(r"([0-9]{1,5})([mhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 30m, 12h, 90d or 8w")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])
