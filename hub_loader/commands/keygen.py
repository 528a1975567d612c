"""`khub keygen OUT`: make a key to sign packages with."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path

from ..errors import UsageError
from ..trust.keys import generate, public_line, public_of, write_private
from ..trust.sign import PASSPHRASE_VARIABLE
from ..trust.statement import key_id
from ..trust.trusted import write_file
from ._common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub keygen`."""
    parser.epilog = (
        "OUT is the private key, for its owner alone; OUT.pub one line to give to everybody.\n\n"
        "examples:\n"
        "  khub keygen release.key --comment 'Example Org, 2026'\n"
        "  khub keygen release.key --passphrase\n\n"
        f"--passphrase takes {PASSPHRASE_VARIABLE} where it is set, and asks otherwise."
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the private key's file, which must not exist yet"
    )
    parser.add_argument("--comment", default="", help="whose key it is, at the end of the public line")
    parser.add_argument("--passphrase", action="store_true", help="encrypt the private key")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    public_path = args.out.with_name(f"{args.out.name}.pub")
    if public_path.exists():
        raise UsageError(f"{public_path} exists: a key is never overwritten, name another file")
    if not args.comment.isprintable():
        raise UsageError(f"the comment {args.comment!r} is not one line of text")
    private = generate()
    write_private(args.out, private, _new_passphrase() if args.passphrase else None)
    key = public_of(private, " ".join(args.comment.split()))
    try:
        write_file(public_path, f"{public_line(key)}\n".encode(), 0o644)
    except OSError as error:
        raise UsageError(f"{public_path} cannot be written ({error.strerror}): name another file") from None
    if args.json:
        print_json(
            {"private": str(args.out), "public": str(public_path), "id": key_id(key), "key": public_line(key)}
        )
    else:
        print(f"key {key_id(key)}\nprivate {args.out}\npublic  {public_path}\n{public_line(key)}")
    return 0


def _new_passphrase() -> str:
    held = os.environ.get(PASSPHRASE_VARIABLE, "")
    if held:
        return held
    if not sys.stdin.isatty():
        raise UsageError(f"nobody can be asked for a passphrase here: set {PASSPHRASE_VARIABLE}")
    first, second = (getpass.getpass(prompt) for prompt in ("Passphrase: ", "Once more: "))
    if not first or first != second:
        raise UsageError("the passphrases are empty or not the same: run it again")
    return first
