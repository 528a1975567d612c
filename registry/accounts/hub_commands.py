"""`khub registry audit | settings`."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict

from ..clock import utc_now
from . import audit
from .audit import Event, shell
from .command_parts import Parsers, add_limits, changing, duration, reading, say, verb
from .settings import Settings, change_settings


def add_hub(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    """Add `audit` and `settings`."""
    _add_audit(nouns, common)
    _add_settings(nouns, common)


def _add_audit(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    parser = verb(
        nouns,
        common,
        "audit",
        _audit,
        "show who did what, to what, from where, newest first",
        "khub registry audit --data hub --org acme --since 7d --json",
    )
    parser.add_argument("--org", help="only what was done to this organization and its repositories")
    parser.add_argument("--actor", help="only what this one did: user:ada, org:acme, cli:root")
    parser.add_argument("--action", help="only this: repo.commit, token.create, member.set")
    parser.add_argument("--since", type=duration, metavar="TIME", help="only the last 12h, 7d, 8w")
    parser.add_argument(
        "--limit", type=int, default=100, metavar="N", help="at most so many (default: %(default)s)"
    )


def _add_settings(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    parser = verb(
        nouns,
        common,
        "settings",
        _settings,
        "show or change what holds for the whole hub, in all of its processes, without a restart",
        "khub registry settings --data hub --public-url https://hub.acme.example\n"
        "  khub registry settings --data hub --rate-address 20 --rate-token 200 --max-file 4G",
    )
    unset = argparse.SUPPRESS
    parser.add_argument(
        "--public-url",
        type=_url,
        default=unset,
        metavar="URL",
        help="the hub's address, as in HF_ENDPOINT; or none",
    )
    parser.add_argument(
        "--rate-address",
        type=_rate,
        default=unset,
        metavar="N",
        help="requests per second of an address; or none",
    )
    parser.add_argument(
        "--rate-token", type=_rate, default=unset, metavar="N", help="requests per second of a token; or none"
    )
    parser.add_argument(
        "--burst",
        type=_rate,
        default=unset,
        metavar="S",
        help="seconds' worth of requests that may come at once",
    )
    add_limits(parser)


def _rate(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def _url(text: str) -> str | None:
    if text.lower() == "none":
        return None
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write https://hub.acme.example")
    return text.rstrip("/")


def _audit(args: argparse.Namespace) -> int:
    since = None if args.since is None else utc_now() - args.since
    with reading(args) as session:
        found = audit.events(
            session, org=args.org, actor=args.actor, action=args.action, since=since, limit=args.limit
        )
    return say(args, found, "\n".join(_event_line(event) for event in found) or "Nothing like that happened.")


def _event_line(event: Event) -> str:
    status = f" {event.status}" if event.status >= 400 else ""
    detail = " ".join(f"{name}={value}" for name, value in event.detail.items() if value not in (None, ""))
    when = f"{event.at:%Y-%m-%d %H:%M:%S}"
    who = f"{event.actor} from {event.address}"
    return f"{event.id:>6}  {when}  {who}  {event.action}{status}  {event.subject}  {detail}".rstrip()


def _settings(args: argparse.Namespace) -> int:
    changes = {name: getattr(args, name) for name in asdict(Settings()) if hasattr(args, name)}
    with changing(args) as session:
        settings = change_settings(session, shell(), changes)
    lines = [f"{name}: {'not set' if value is None else value}" for name, value in asdict(settings).items()]
    return say(args, settings, "\n".join(lines))
