"""`khub registry export | import`: repositories from one hub to another that cannot reach it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from hub_loader.errors import UsageError

from .accounts.command_parts import Parsers, verb
from .clock import utc_now
from .place import open_blobs, open_store, place_of


def add_carry(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    """Add the commands; `common` has the arguments that say where the registry is."""
    out = verb(
        nouns,
        common,
        "export",
        _export,
        "write repositories to one file, to be carried to another hub",
        description=_EXPORT,
    )
    out.add_argument("file", type=Path, metavar="FILE", help="a new file")
    out.add_argument("repos", nargs="*", metavar="ORG/NAME", help="the repositories")
    out.add_argument("--all", action="store_true", help="all repositories")
    into = verb(
        nouns, common, "import", _import, "take over repositories from such a file", description=_IMPORT
    )
    into.add_argument("file", type=Path, metavar="FILE", help="what `khub registry export` wrote")
    into.add_argument("--manifest", metavar="SHA256", help="refuse any archive but that one")
    into.add_argument(
        "--force", action="store_true", help="move branches and tags that would lose commits by it"
    )


_EXPORT = """\
Write repositories to FILE, which appears when it is complete: branches, tags, all of their commits with the
ids they have, and the content, signatures among it; of a mirror's copy what was fetched; and where the hub is a TUF
repository what each organization's publishers have signed as its list. No key and no token is in it. Every byte is
checked on the way. Servers may go on reading and writing. What it prints last, the SHA-256 of the archive's manifest,
proves the archive to the importing side if it gets there by another way.

examples:
  khub registry export --data hub carry.tar acme/relu acme/gelu
  khub registry export --data hub carry.tar --all"""
_IMPORT = """\
Take over the repositories of FILE. The whole archive is checked before any of it can be seen; a branch moves
to commits made on top of those it has, and otherwise, like a tag, only with --force. A publishers' list is taken if
this hub is a TUF repository that lets them publish, else left out, which is said. Importing twice changes nothing.
Servers may go on reading and writing.

examples:
  khub registry import --data hub carry.tar
  khub registry import --data hub carry.tar --manifest 5d41..."""


def _export(args: argparse.Namespace) -> int:
    from .export import export

    if bool(args.repos) == args.all:
        raise UsageError("Name the repositories to export as ORG/NAME, or say --all.")
    store = open_store(args)
    try:
        done = export(store, open_blobs(place_of(args), store), args.file, args.repos, utc_now())
    finally:
        store.close()
    if args.json:
        print(json.dumps(asdict(done)))
    else:
        print(f"{args.file}: {len(done.repos)} repositories, {done.commits} commits, ", end="")
        print(f"{done.blobs} blobs ({done.bytes / 1e6:.1f} MB). Manifest:")
        print(done.manifest)
    return 0


def _import(args: argparse.Namespace) -> int:
    from .carry_in import carry_in
    from .tuf.repository import TufRepository

    store = open_store(args)
    try:
        blobs = open_blobs(place_of(args), store)
        done = carry_in(
            store,
            blobs,
            args.file,
            manifest=args.manifest,
            force=args.force,
            tuf=TufRepository(store, args.data),
        )
    finally:
        store.close()
    if args.json:
        print(json.dumps(asdict(done)))
    else:
        print(f"{done.repos} repositories, {len(done.created)} of them new; {done.blobs} blobs ", end="")
        print(f"({done.bytes / 1e6:.1f} MB); {len(done.moved)} references set or moved.")
        for org, said in done.lists.items():
            print(f"The list of {org}: {said}")
    return 0
