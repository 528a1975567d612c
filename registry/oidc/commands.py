"""`khub registry publisher`."""

from __future__ import annotations

import argparse

from ..accounts.audit import shell
from ..accounts.command_parts import Parsers, changing, noun, reading, say, verb
from ..accounts.settings import read_settings
from .configured import add_publisher, list_publishers, remove_publisher
from .publishers import Publisher

GITHUB = "https://token.actions.githubusercontent.com"


def add_publishers(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    """Add `publisher`."""
    verbs = noun(nouns, "publisher", "CI workflows that upload without a stored token")
    add = verb(
        verbs,
        common,
        "add",
        _publisher_add,
        "let the runs of a CI workflow upload, with tokens that last 15 minutes",
        "khub registry settings --data hub --public-url https://hub.acme.example\n"
        "  khub registry publisher add --data hub --org acme --repository acme/kernels \\\n"
        "    --workflow publish.yml --environment hub --ref 'refs/tags/v*'",
    )
    add.add_argument("--org", required=True, help="the organization that they upload for")
    add.add_argument(
        "--issuer", default=GITHUB, metavar="URL", help="who vouches for them (default: %(default)s)"
    )
    add.add_argument("--repository", required=True, metavar="OWNER/NAME", help="whose runs, at the issuer")
    add.add_argument("--kernel", metavar="NAME", help="the one repository of the organization they upload to")
    add.add_argument("--workflow", metavar="FILE", help="only of this file in .github/workflows")
    add.add_argument("--environment", help="only in this environment, which can ask for a review")
    add.add_argument("--ref", metavar="GLOB", help="only for these references: refs/heads/main, refs/tags/v*")
    add.add_argument(
        "--owner-id", metavar="N", help="only while the account has this number, which a new one cannot take"
    )
    listing = verb(verbs, common, "list", _publisher_list, "show publishers")
    listing.add_argument("--org", help="only this organization's")
    remove = verb(verbs, common, "remove", _publisher_remove, "end what a publisher may do, and its tokens")
    remove.add_argument("id", type=int, help="the publisher's number, from `publisher list`")


def _publisher_add(args: argparse.Namespace) -> int:
    fields = ("issuer", "repository", "kernel", "workflow", "environment", "ref", "owner_id")
    new = Publisher(0, args.org, **{name: getattr(args, name) for name in fields})
    with changing(args) as session:
        made = add_publisher(session, shell(), new)
        public_url = read_settings(session).public_url
    todo = (
        ""
        if public_url
        else "\nIt works once the hub's address is set: khub registry settings --public-url URL"
    )
    return say(args, made, f"Publisher {made.id} may upload for {made.org!r}: {made}{todo}")


def _publisher_list(args: argparse.Namespace) -> int:
    with reading(args) as session:
        found = list_publishers(session, args.org)
    lines = [f"{it.id:>4}  {it.org}{f'/{it.kernel}' if it.kernel else ''}  {it}  {it.issuer}" for it in found]
    return say(args, found, "\n".join(lines) or "No publishers yet: khub registry publisher add --help")


def _publisher_remove(args: argparse.Namespace) -> int:
    with changing(args) as session:
        remove_publisher(session, shell(), args.id)
    return say(args, {"removed": args.id}, f"Publisher {args.id} is removed.")
