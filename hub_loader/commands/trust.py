"""`khub trust add|list|remove|revoke|forget`: whose signatures count here."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import read_endpoint
from ..errors import UsageError
from ..hub import check_repo_id
from ..manifest import sha256_hex
from ..trust.keys import KIND, parse_public_key, public_line
from ..trust.seen import forget, record_path
from ..trust.trusted import IdentityEntry, KeyEntry, change_trust, read_trust, trust_path
from ..trust.tuf_client import add_root, remove_root, roots
from ._common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub trust`."""
    parser.epilog = (
        "examples:\n"
        "  khub trust add org release.key.pub\n"
        f"  khub trust add org '{KIND} RWxs… Example Org' --hub https://hub.example\n"
        "  khub trust add --hub https://hub.example --root root.json    refuse what its TUF metadata does not list\n"
        "  khub trust list\n"
        "  khub trust revoke org 3f2a9c     what it signed is refused from now on, whatever else is allowed\n"
        "  khub trust remove org 3f2a9c     it is unknown again\n"
        "  khub trust forget org/name       an older version, or one without a signature, is meant\n\n"
        "The trust file is KHUB_TRUST_FILE, else kernel-hub/trust.json in XDG_CONFIG_HOME."
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", help="let a key, or a sigstore identity, sign for an organization")
    _add_org(add, needed=False)
    add.add_argument(
        "--root", type=Path, metavar="FILE", help="instead of a key: the TUF root of the hub itself"
    )
    add.add_argument("key", metavar="KEY", nargs="?", help="the public key's file, or its line in quotes")
    add.add_argument("--identity", help="instead of a key: who signs with sigstore, as certificates state it")
    add.add_argument(
        "--issuer", help="who vouches for that identity, e.g. https://token.actions.githubusercontent.com"
    )
    add.add_argument(
        "--trusted-root",
        type=Path,
        metavar="FILE",
        help="sigstore's trusted root; the library's when left out",
    )
    add.set_defaults(run=_add)
    listing = actions.add_parser("list", help="show who may sign")
    add_json(listing)
    listing.set_defaults(run=_list)
    for name, help_text, run in (
        ("remove", "make a key or an identity unknown again", _remove),
        ("revoke", "refuse everything that a key has signed", _revoke),
    ):
        action = actions.add_parser(name, help=help_text)
        _add_org(action, needed=name != "remove")
        if name == "remove":
            action.add_argument(
                "--root", action="store_true", help="instead of a key: the TUF root of the hub"
            )
        action.add_argument(
            "key",
            metavar="KEY",
            nargs="?" if name == "remove" else None,
            help="its id or the beginning of it, its line, file or comment",
        )
        action.set_defaults(run=run)
    forgotten = actions.add_parser("forget", help="forget what a repository has shown here before")
    forgotten.add_argument("repo_id", metavar="ORG/NAME")
    _add_hub(forgotten)
    forgotten.set_defaults(run=_forget)


def _add_org(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    nargs = None if needed else "?"
    parser.add_argument("org", metavar="ORG", nargs=nargs, help="the organization whose kernels are meant")
    _add_hub(parser)


def _add_hub(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hub", metavar="URL", help="on which hub; the one that HF_ENDPOINT names when left out"
    )


def _add(args: argparse.Namespace) -> int:
    if args.root is not None:
        return _add_root(args)
    hub, org = _hub(args), _org(args)
    if args.identity or args.issuer:
        if args.key or not (args.identity and args.issuer):
            raise UsageError("pass a key, or --identity and --issuer together")
        root = "" if args.trusted_root is None else str(args.trusted_root.absolute())
        identity = IdentityEntry(hub, org, args.identity, args.issuer, root)
        change_trust(lambda trust: trust.add_identity(identity))
        print(f"{args.identity} may sign for {org} on {hub}")
        return 0
    if not args.key:
        raise UsageError("pass the public key: its file, or its line in quotes")
    entry = KeyEntry(hub, org, parse_public_key(_line(args.key)))
    change_trust(lambda trust: trust.add(entry))
    print(f"the key {entry.id} may sign for {org} on {hub}")
    return 0


def _add_root(args: argparse.Namespace) -> int:
    if args.org or args.key or args.identity or args.issuer:
        raise UsageError("a root is the hub's own: pass --root and --hub, without an organization or a key")
    try:
        data = args.root.read_bytes()
    except OSError as error:
        raise UsageError(f"{args.root} cannot be read: {error.strerror}") from None
    hub = _hub(args)
    version = add_root(hub, data, str(args.root))
    print(
        f"{hub} is a TUF repository from version {version} of its root on: what it does not list is refused"
    )
    return 0


def _list(args: argparse.Namespace) -> int:
    trust = read_trust()
    if args.json:
        keys = [
            {
                "hub": one.hub,
                "org": one.org,
                "id": one.id,
                "key": public_line(one.key),
                "revoked": one.revoked,
            }
            for one in trust.keys
        ]
        print_json(
            {
                "file": str(trust.path),
                "keys": keys,
                "identities": [vars(one) for one in trust.identities],
                "roots": [given.hub for given in roots()],
            }
        )
        return 0
    for one in trust.keys:
        state = "revoked " if one.revoked else ""
        print(f"{one.hub} {one.org}: {state}{one.id[:16]} {one.key.comment}".rstrip())
    for who in trust.identities:
        print(f"{who.hub} {who.org}: {who.identity} by {who.issuer}")
    for given in roots():
        print(
            f"{given.hub}: root {sha256_hex(given.data)[:16]}, what its TUF metadata does not list is refused"
        )
    print(f"{len(trust.keys) + len(trust.identities)} in {trust.path}")
    return 0


def _remove(args: argparse.Namespace) -> int:
    if args.root:
        if args.org or args.key:
            raise UsageError(
                "a root is the hub's own: pass --root and --hub, without an organization or a key"
            )
        remove_root(_hub(args))
        print(f"the TUF metadata of {_hub(args)} is not asked for any more")
        return 0
    if not args.key:
        raise UsageError("pass the organization and the key, or --root")
    hub, org, chosen = _hub(args), _org(args), _line(args.key)
    change_trust(lambda trust: trust.remove(hub, org, chosen))
    print(f"{args.key} is unknown for {org} on {hub}")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    hub, org, chosen = _hub(args), _org(args), _line(args.key)
    change_trust(lambda trust: trust.revoke(hub, org, chosen))
    print(f"what {args.key} has signed for {org} on {hub} is refused")
    return 0


def _forget(args: argparse.Namespace) -> int:
    check_repo_id(args.repo_id)
    known = forget(record_path(trust_path(), _hub(args), args.repo_id))
    print(f"{args.repo_id}: {'forgotten' if known else 'nothing was remembered'}")
    return 0


def _hub(args: argparse.Namespace) -> str:
    return read_endpoint(None if args.hub is None else {"HF_ENDPOINT": args.hub})


def _org(args: argparse.Namespace) -> str:
    if not args.org:
        raise UsageError("pass the organization whose kernels are meant")
    check_repo_id(f"{args.org}/name")
    return str(args.org)


def _line(text: str) -> str:
    """The public line in a file of that name, else the text itself."""
    path = Path(text)
    if text.startswith(KIND):
        return text
    if not path.is_file():
        if path.suffix == ".pub":
            raise UsageError(
                f"there is no file {path}: name the publisher's .pub file, or give its line in quotes"
            )
        return text
    try:
        return path.read_text(encoding="utf-8")[:1000]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
