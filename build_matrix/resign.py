"""`khub resign ORG`: sign an organization's TUF targets again, before they expire or after a key was revoked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hub_loader.config import load_config
from hub_loader.errors import UsageError
from hub_loader.hub import check_repo_id
from hub_loader.trust.sign import KEY_VARIABLE, signing_key


def add_resign(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub resign`."""
    parser.epilog = (
        "Targets are good for a year from the last publication. After a key was revoked, readers refuse what only\n"
        "that key has signed: --unverified signs the list as the hub shows it, whoever made it, so compare the\n"
        "digests that --dry-run prints with those of your own builds (sha256sum index.json) before.\n\n"
        "examples:\n"
        "  khub resign org --sign-key release.key\n"
        "  khub resign org --sign-key new.key --unverified --dry-run\n"
        "  khub resign org --sign-key new.key --unverified --without org/old/v1/index.json"
    )
    parser.add_argument("org", metavar="ORG", help="the organization on the hub that HF_ENDPOINT names")
    parser.add_argument(
        "--sign-key",
        type=Path,
        metavar="FILE",
        help=f"a publisher's private key; {KEY_VARIABLE} when left out",
    )
    parser.add_argument(
        "--unverified", action="store_true", help="also what no key that is allowed today has signed"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="TARGET", help="leave this one out; can be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be signed, and sign nothing")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from .targets import listing, publisher

    check_repo_id(f"{args.org}/name")
    key = signing_key(args.sign_key)
    if key is None:
        raise UsageError(f"there is no key to sign with: pass --sign-key FILE, or set {KEY_VARIABLE}")
    config = load_config()
    found = publisher(config, args.org, key)
    if found is None:
        raise UsageError(f"{config.endpoint} is no TUF repository: there is nothing to sign again")
    digests, version = listing(found, args.without, unverified=args.unverified, dry_run=args.dry_run)
    if args.json:
        print(json.dumps({"org": args.org, "targets": digests, "version": version}, indent=2))
        return 0
    for path, digest in digests.items():
        print(f"{digest}  {path}")
    print(
        f"{args.org}: {'nothing is signed' if version is None else f'version {version} of its targets is signed'}"
    )
    return 0
