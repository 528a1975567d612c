"""`khub registry token`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from hub_loader.errors import UsageError

from ..clock import utc_now
from ..names import check_repo_name
from . import directory, tokens
from .audit import record, shell
from .command_parts import Parsers, changing, duration, noun, reading, say, verb
from .identity import Scope
from .tokens import NewToken, TokenInfo


def add_tokens(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    """Add `token`."""
    verbs = noun(nouns, "token", "make, list and revoke the tokens that clients send")
    create = verb(
        verbs,
        common,
        "create",
        _token_create,
        "make a token of an organization or a user and print it, once; kept as a hash, it cannot be shown again",
        "export HF_TOKEN=$(khub registry token create --data hub --org acme --write | tail -n 1)\n"
        "  khub registry token create --data hub --user ada --write --limit acme/relu --expires 90d",
    )
    create.add_argument(
        "--org", help="the organization it stands for, created if it is new; with --user: the limit's"
    )
    create.add_argument("--user", help="the user it stands for; what it may do follows from the roles")
    create.add_argument("--write", action="store_true", help="allow uploading: the same as --scope write")
    create.add_argument(
        "--scope", choices=[str(scope) for scope in Scope], help="what it is for (default: read)"
    )
    create.add_argument(
        "--limit", metavar="ORG[/NAME]", help="good for this organization or repository alone"
    )
    create.add_argument("--expires", type=duration, metavar="TIME", help="useless after 12h, 90d, 8w")
    create.add_argument("--label", default="", help="what it is for, to find it again")
    listing = verb(verbs, common, "list", _token_list, "show the tokens that work, without their secrets")
    listing.add_argument("--org", help="only this organization's own")
    listing.add_argument("--user", help="only this user's")
    listing.add_argument("--all", action="store_true", help="also those that are revoked or expired")
    revoke = verb(
        verbs,
        common,
        "revoke",
        _token_revoke,
        "make a token useless at once",
        "khub registry token revoke --data hub 3",
    )
    revoke.add_argument("id", type=int, help="the token's number, from `token list`")


def _token_create(args: argparse.Namespace) -> int:
    if not args.org and not args.user:
        raise UsageError("Whose token? Say --org ORG for an organization's own, or --user USER.")
    if args.write and args.scope == "read":
        raise UsageError("--write and --scope read contradict each other.")
    scope = Scope[(args.scope or ("write" if args.write else "read")).upper()]
    with changing(args) as session:
        new = _new_token(session, args, scope)
        secret, row = tokens.issue(session, new, utc_now())
        info = tokens.token_info(session, row)
        detail: dict[str, Any] = {
            "token": info.id,
            "scope": info.scope,
            "limit": info.limit,
            "expires": _stamp(info.expires_at),
        }
        record(session, shell(), "token.create", info.owner, **detail)
    if args.json:
        made = {"id": info.id, "scope": info.scope, "limit": info.limit, "token": secret}
        print(json.dumps(made | {info.kind: info.owner, "expires_at": _stamp(info.expires_at)}))
        return 0
    limit = f", limited to {info.limit!r}" if info.limit else ""
    until = f", until {info.expires_at:%Y-%m-%d %H:%M} UTC" if info.expires_at else ""
    print(f"A token to {info.scope} as {info.owner!r}{limit}{until}; it is not shown again:\n{secret}")
    return 0


def _new_token(session: Session, args: argparse.Namespace, scope: Scope) -> NewToken:
    only_org, only_repo = None, None
    limit = args.limit or (args.org if args.user else None)
    if limit:
        org, slash, name = limit.partition("/")
        if args.org and org != args.org:
            raise UsageError(f"--limit {limit} is outside of --org {args.org}.")
        if args.user:
            only_org = directory.find_org(session, org).id
        only_repo = check_repo_name(name) if slash else None
    org_row = None if args.user else directory.ensure_org(session, shell(), args.org)
    if org_row is not None and limit:
        only_org = org_row.id
    return NewToken(
        scope=scope,
        org_id=None if org_row is None else org_row.id,
        user_id=directory.find_user(session, args.user).id if args.user else None,
        only_org_id=only_org,
        only_repo=only_repo,
        label=args.label,
        expires_at=None if args.expires is None else utc_now() + args.expires,
    )


def _token_list(args: argparse.Namespace) -> int:
    now = utc_now()
    with reading(args) as session:
        found = tokens.list_tokens(session, org=args.org, user=args.user)
    shown = [token for token in found if args.all or not token.state(now)]
    rows = [asdict(token) | {"can_write": token.can_write, "state": token.state(now)} for token in shown]
    none = "No tokens yet: khub registry token create --data DIR --org ORG --write"
    return say(args, rows, "\n".join(_token_line(token, now) for token in shown) or none)


def _token_line(token: TokenInfo, now: datetime) -> str:
    about = [
        token.owner if token.kind != "publisher" else f"{token.owner} (CI)",
        f"limited to {token.limit}" if token.limit else "",
        f"until {token.expires_at:%Y-%m-%d %H:%M}" if token.expires_at else "",
        f"used {token.last_used_at:%Y-%m-%d %H}h" if token.last_used_at else "never used",
        token.label,
        token.state(now),
    ]
    made = f"{token.created_at:%Y-%m-%d %H:%M} UTC"
    return f"{token.id:>4}  {token.scope:5}  {token.hint}...  {made}  {', '.join(part for part in about if part)}"


def _token_revoke(args: argparse.Namespace) -> int:
    with changing(args) as session:
        info = tokens.revoke(session, args.id, utc_now())
        record(session, shell(), "token.revoke", info.owner, token=args.id)
    return say(args, {"revoked": args.id}, f"Token {args.id} is revoked.")


def _stamp(date: datetime | None) -> str | None:
    return None if date is None else f"{date.isoformat()}Z"
