"""`khub serve` and `khub registry`."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from hub_loader.errors import UsageError

from .accounts.commands import add_accounts
from .accounts.hub_commands import add_hub
from .accounts.token_commands import add_tokens
from .cli_carry import add_carry
from .cli_operate import add_operate
from .oidc.commands import add_publishers
from .place import add_arguments, place_of
from .telemetry.options import add_arguments as add_options
from .telemetry.options import options_of

if TYPE_CHECKING:
    from .mirror import MirrorSettings

_SERVE_EXAMPLES = """\
examples:
  khub serve --data hub --port 8000
  khub serve --data hub --port 0 --json        any free port, the address as JSON
  khub serve --data hub --workers 4            four processes on one address
  khub serve --data hub --upstream https://hub.example.com --mirror-allow 'acme/*'
  HF_ENDPOINT=http://127.0.0.1:8000 python -c "from huggingface_hub import HfApi; ..."

Reading is public; writing needs a token: khub registry token create --help.
Ctrl-C or SIGTERM stops the server when requests under way are answered; a second one at once."""

_REGISTRY_EXAMPLES = """\
examples:
  khub registry token create --data hub --org acme --write     the token is the last line
  khub registry token list --data hub
  khub registry token revoke --data hub 3
  khub registry user add --data hub ada && khub registry member add --data hub --org acme --user ada --role writer
  khub registry audit --data hub --since 7d

  khub registry backup --data hub backup.tar                   then: restore, fsck, gc
  khub registry export --data hub carry.tar acme/relu          then: import, on a hub that this one cannot reach

All but `restore` work while the server runs, and take effect at once."""


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `khub serve`."""
    parser.epilog = _SERVE_EXAMPLES
    add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port (default: %(default)s; 0: any)"
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that serve this address; one for each core that is to be used (default: %(default)s)",
    )
    parser.add_argument(
        "--redirect",
        action="store_true",
        help="with --storage: send clients to signed addresses of the storage",
    )
    parser.add_argument(
        "--upstream",
        metavar="URL",
        help="look there for repositories that are not here, and keep them ($KHUB_UPSTREAM_TOKEN: a token for it)",
    )
    parser.add_argument(
        "--mirror-allow", action="append", default=[], metavar="GLOB", help="only those, such as 'acme/*'"
    )
    parser.add_argument(
        "--mirror-deny", action="append", default=[], metavar="GLOB", help="none of those; repeat for more"
    )
    parser.add_argument(
        "--mirror-ttl",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long its branches and tags are taken as known (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="say the address as one line of JSON")
    add_options(parser)
    parser.set_defaults(run=_serve)


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `khub registry`."""
    parser.epilog = _REGISTRY_EXAMPLES
    nouns = parser.add_subparsers(metavar="NOUN", required=True)
    common = argparse.ArgumentParser(add_help=False)
    add_arguments(common)
    common.add_argument("--json", action="store_true", help="print JSON")
    add_accounts(nouns, common)
    add_tokens(nouns, common)
    add_publishers(nouns, common)
    add_hub(nouns, common)
    add_operate(nouns, common)
    add_carry(nouns, common)
    from .tuf.cli import add_trust  # `khub serve` need not know it

    add_trust(nouns)


def _serve(args: argparse.Namespace) -> int:
    from .server import serve  # the server's dependencies load only when it runs
    from .serving import Plan

    def ready(url: str) -> None:
        line = json.dumps({"url": url, "data": str(args.data)}) if args.json else None
        print(line or f"Kernel Hub serves {args.data} at {url}", flush=True)

    with suppress(KeyboardInterrupt):  # Ctrl-C before it serves
        plan = Plan(place_of(args), options=options_of(args), mirror=_mirror_of(args))
        serve(plan, args.host, args.port, ready=ready, workers=args.workers)
    return 0


def _workers(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 256")
    return count


def _mirror_of(args: argparse.Namespace) -> MirrorSettings | None:
    if args.upstream is None:
        return None
    from .mirror import MirrorSettings
    from .upstream import check_url

    try:
        url = check_url(args.upstream)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    token = os.environ.get("KHUB_UPSTREAM_TOKEN") or None
    return MirrorSettings(url, token, args.mirror_allow, args.mirror_deny, args.mirror_ttl)
