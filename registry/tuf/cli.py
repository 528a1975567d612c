"""`khub registry trust`: the arguments of its verbs. What they do is in commands.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..place import add_arguments

Run = Callable[[argparse.Namespace], int]
_EXAMPLES = """\
A hub whose operator has done the first ceremony is a TUF repository: readers who are given its root refuse whatever
was not signed by a publisher the operator has delegated to. Root and targets are signed with keys that the server never
sees; drafts travel as files.

the first ceremony, two of three people, then a publisher:
  khub keygen alice.key; khub keygen bob.key; khub keygen carol.key
  khub registry trust init --data hub --keys alice.key.pub bob.key.pub carol.key.pub --threshold 2 --out ceremony
  khub registry trust sign ceremony/root.json ceremony/targets.json --key alice.key
  khub registry trust sign ceremony/root.json ceremony/targets.json --key bob.key
  khub registry trust apply --data hub ceremony/root.json ceremony/targets.json
  khub registry trust root --data hub --out root.json          readers are given this file
  khub registry trust delegate --data hub --org acme --keys publisher.key.pub --out ceremony-2
  khub registry trust sign ceremony-2/targets.json --key alice.key      and bob.key, then apply

All of them work while the server runs; sign needs neither the server nor a network."""


def add_trust(nouns: Any) -> None:
    """Add `trust` and its verbs to the nouns of `khub registry`."""
    trust = nouns.add_parser(
        "trust",
        help="the hub as a TUF repository: keys, ceremonies, publishers",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = trust.add_subparsers(metavar="VERB", required=True)
    _add_ceremonies(verbs)
    _add_server_side(verbs)
    sign = verbs.add_parser("sign", help="add a signature to drafts, with a key that stays here")
    sign.add_argument(
        "drafts", type=Path, nargs="+", metavar="FILE", help="root.json, targets.json of a ceremony"
    )
    sign.add_argument("--key", type=Path, required=True, help="a private key of `khub keygen`")
    sign.add_argument("--json", action="store_true", help="print JSON")
    sign.set_defaults(run=_verb("sign"))


def _add_ceremonies(verbs: Any) -> None:
    init = _drafting(verbs, "init", "draft the first root and targets, and make the server's keys")
    _keys(init, "--keys", "public keys of root, files or lines of `khub keygen`", required=True)
    init.add_argument("--threshold", type=int, required=True, metavar="K", help="how many of them must sign")
    _keys(
        init, "--targets-keys", "public keys of targets, which delegates to publishers (default: root's keys)"
    )
    init.add_argument(
        "--targets-threshold",
        type=int,
        metavar="K",
        help="how many of those must sign (default: as root, or 1)",
    )
    for role, days in (("root", 365), ("targets", 365), ("snapshot", 7), ("timestamp", 1)):
        init.add_argument(
            f"--{role}-days",
            type=float,
            default=days,
            metavar="N",
            help=f"{role} expires after (default: {days})",
        )
    delegate = _drafting(verbs, "delegate", "draft who publishes for an organization")
    delegate.add_argument("--org", required=True, help="the organization")
    _keys(
        delegate,
        "--keys",
        "public keys of its publishers, all of them; none: nobody",
        required=True,
        nargs="*",
    )
    rotate = _drafting(verbs, "rotate", "draft other keys for one of TUF's roles")
    rotate.add_argument("role", choices=("root", "targets", "snapshot", "timestamp"))
    _keys(rotate, "--add", "public keys to add (root, targets; the server makes its own)")
    rotate.add_argument("--remove", nargs="+", default=[], metavar="KEY", help="ids or public keys to remove")
    rotate.add_argument("--threshold", type=int, metavar="K", help="how many must sign from now on")
    revoke = _drafting(verbs, "revoke", "draft that a key signs nothing any more")
    revoke.add_argument("key", help="a key's id or public key: of root, of targets or of a publisher")
    renew = _drafting(verbs, "renew", "draft root or targets again, before it expires")
    renew.add_argument("role", choices=("root", "targets"))


def _add_server_side(verbs: Any) -> None:
    apply = _with_data(verbs, "apply", "take signed drafts, and sign snapshot and timestamp")
    apply.add_argument(
        "drafts", type=Path, nargs="+", metavar="FILE", help="root.json, targets.json of a ceremony"
    )
    _with_data(verbs, "status", "every role: version, keys, until when it is good")
    refresh = _with_data(verbs, "refresh", "sign snapshot and timestamp where it is time to")
    refresh.add_argument("--force", action="store_true", help="even if it is not")
    save = _with_data(
        verbs, "save-keys", "write the server's keys to a file of their own, for no backup has them"
    )
    save.add_argument(
        "file", type=Path, metavar="FILE", help="a new file; encrypted where KHUB_KEY_PASSPHRASE is set"
    )
    load = _with_data(verbs, "load-keys", "take the server's keys from such a file, as after a restore")
    load.add_argument("file", type=Path, metavar="FILE", help="what `khub registry trust save-keys` wrote")
    root = _with_data(verbs, "root", "write the current root, which readers are given")
    root.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")


def _with_data(verbs: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=f"{summary.capitalize()}."
    )
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_verb(name))
    return parser


def _drafting(verbs: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser = _with_data(verbs, name, summary)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the drafts; made if new"
    )
    return parser


def _keys(
    parser: argparse.ArgumentParser, flag: str, about: str, *, required: bool = False, nargs: str = "+"
) -> None:
    parser.add_argument(flag, nargs=nargs, required=required, default=[], metavar="KEY", help=about)


def _verb(name: str) -> Run:
    """The verb's function, whose libraries are imported when it runs."""

    def run(args: argparse.Namespace) -> int:
        return int(getattr(import_module(".commands", __package__), name.replace("-", "_"))(args))

    return run
