"""`khub serve` and `khub registry`."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from dataclasses import asdict

from hub_loader.errors import UsageError

from . import auth
from .errors import RequestError
from .place import add_arguments, open_store, place_of

_SERVE_EXAMPLES = """\
examples:
  khub serve --data hub --port 8000
  khub serve --data hub --port 0 --json        any free port, the address as JSON
  HF_ENDPOINT=http://127.0.0.1:8000 python -c "from huggingface_hub import HfApi; ..."

Reading is public; writing needs a token: khub registry token create --help.
Ctrl-C stops the server."""

_REGISTRY_EXAMPLES = """\
examples:
  khub registry token create --data hub --org acme --write     the token is the last line
  khub registry token list --data hub
  khub registry token revoke --data hub 3

All of them work while the server runs, and take effect at once."""


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `khub serve`."""
    parser.epilog = _SERVE_EXAMPLES
    add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port (default: %(default)s; 0: any)"
    )
    parser.add_argument(
        "--redirect",
        action="store_true",
        help="with --storage: send clients to signed addresses of the storage",
    )
    parser.add_argument("--verbose", action="store_true", help="log every request to stderr")
    parser.add_argument("--json", action="store_true", help="say the address as one line of JSON")
    parser.set_defaults(run=_serve)


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `khub registry`."""
    parser.epilog = _REGISTRY_EXAMPLES
    nouns = parser.add_subparsers(metavar="NOUN", required=True)
    token = nouns.add_parser("token", help="make, list and revoke the tokens that allow writing")
    verbs = token.add_subparsers(metavar="VERB", required=True)
    common = argparse.ArgumentParser(add_help=False)
    add_arguments(common)
    common.add_argument("--json", action="store_true", help="print JSON")

    create = verbs.add_parser(
        "create",
        parents=[common],
        help="make a token and print it, once",
        description="Make a token of an organization and print it; kept as a hash, it cannot be shown again.",
        epilog="example:\n"
        "  export HF_TOKEN=$(khub registry token create --data hub --org acme --write | tail -n 1)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    create.add_argument("--org", required=True, help="the organization it stands for; created if it is new")
    create.add_argument(
        "--write", action="store_true", help="allow uploading to the organization's repositories"
    )
    create.set_defaults(run=_create_token)

    listing = verbs.add_parser("list", parents=[common], help="show the tokens, without their secrets")
    listing.set_defaults(run=_list_tokens)

    revoke = verbs.add_parser("revoke", parents=[common], help="make a token useless at once")
    revoke.add_argument("id", type=int, help="the token's number, from `token list`")
    revoke.set_defaults(run=_revoke_token)
    from .tuf.cli import add_trust  # `khub serve` need not know it

    add_trust(nouns)


def _serve(args: argparse.Namespace) -> int:
    from .server import serve  # the server's dependencies load only when it runs

    def ready(url: str) -> None:
        line = json.dumps({"url": url, "data": str(args.data)}) if args.json else None
        print(line or f"Kernel Hub serves {args.data} at {url}", flush=True)

    with suppress(KeyboardInterrupt):  # Ctrl-C is how it is meant to stop; requests under way were finished
        serve(place_of(args), args.host, args.port, verbose=args.verbose, ready=ready)
    return 0


def _create_token(args: argparse.Namespace) -> int:
    try:
        secret = auth.create_token(open_store(args), args.org, can_write=args.write)
    except RequestError as error:
        raise UsageError(error.message) from None
    scope = "write" if args.write else "read"
    if args.json:
        print(json.dumps({"org": args.org, "scope": scope, "token": secret}))
    else:
        print(f"A token to {scope} as {args.org!r}; it is not shown again:\n{secret}")
    return 0


def _list_tokens(args: argparse.Namespace) -> int:
    tokens = auth.list_tokens(open_store(args))
    if args.json:
        rows = [asdict(token) | {"created_at": f"{token.created_at.isoformat()}Z"} for token in tokens]
        print(json.dumps(rows, indent=2))
        return 0
    for token in tokens:
        scope = "write" if token.can_write else "read "
        print(f"{token.id:>4}  {scope}  {token.hint}...  {token.created_at:%Y-%m-%d %H:%M} UTC  {token.org}")
    if not tokens:
        print("No tokens yet: khub registry token create --data DIR --org ORG --write")
    return 0


def _revoke_token(args: argparse.Namespace) -> int:
    auth.revoke_token(open_store(args), args.id)
    print(json.dumps({"revoked": args.id}) if args.json else f"Token {args.id} is revoked.")
    return 0
