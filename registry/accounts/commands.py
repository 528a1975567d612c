"""`khub registry org | user | member`: what the operator at the command line does to accounts."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from . import directory
from .audit import record, shell
from .command_parts import Parsers, add_limits, changing, noun, reading, say, verb
from .directory import OrgInfo, UserInfo
from .identity import Role
from .limits import used_bytes


def add_accounts(nouns: Parsers, common: argparse.ArgumentParser) -> None:
    """Add `org`, `user` and `member`."""
    _add_org(noun(nouns, "org", "organizations: their repositories, limits and trust"), common)
    _add_user(noun(nouns, "user", "people, who act through tokens of their own"), common)
    _add_member(noun(nouns, "member", "who is reader, writer or owner of which organization"), common)


def _add_org(verbs: Parsers, common: argparse.ArgumentParser) -> None:
    add = verb(
        verbs, common, "add", _org_add, "make an organization", "khub registry org add --data hub acme"
    )
    add.add_argument("name")
    verb(verbs, common, "list", _org_list, "show organizations with their limits")
    remove = verb(
        verbs,
        common,
        "remove",
        _org_remove,
        "remove an organization, its tokens and publishers",
        "khub registry org remove --data hub acme --with-repositories",
    )
    remove.add_argument("name")
    remove.add_argument(
        "--with-repositories", action="store_true", help="also delete its repositories and all they hold"
    )
    trust = verb(
        verbs,
        common,
        "trust",
        _org_trust,
        "say that clients may run an organization's kernels without asking their users",
        "khub registry org trust --data hub acme",
    )
    trust.add_argument("name")
    trust.add_argument("--off", action="store_true", help="no longer")
    quota = verb(
        verbs,
        common,
        "quota",
        _org_quota,
        "show or set how much an organization may hold",
        "khub registry org quota --data hub acme --bytes 50G --max-file 2G --max-files 5000",
    )
    quota.add_argument("name")
    add_limits(quota)


def _add_user(verbs: Parsers, common: argparse.ArgumentParser) -> None:
    add = verb(
        verbs,
        common,
        "add",
        _user_add,
        "make a user",
        "khub registry user add --data hub ada --full-name 'Ada Lovelace'\n"
        "  khub registry member add --data hub --org acme --user ada --role writer\n"
        "  khub registry token create --data hub --user ada --write",
    )
    add.add_argument("name")
    add.add_argument("--full-name", default="", help="as pages show it")
    add.add_argument(
        "--operator",
        action="store_true",
        help="runs the hub: manages every organization with a token of scope admin",
    )
    verb(verbs, common, "list", _user_list, "show users with their roles")
    remove = verb(verbs, common, "remove", _user_remove, "remove a user with all tokens")
    remove.add_argument("name")


def _add_member(verbs: Parsers, common: argparse.ArgumentParser) -> None:
    add = verb(
        verbs,
        common,
        "add",
        _member_add,
        "make a user a member, or give a member another role",
        "khub registry member add --data hub --org acme --user ada --role owner",
    )
    remove = verb(verbs, common, "remove", _member_remove, "take a user out of an organization")
    for parser in (add, remove):
        parser.add_argument("--org", required=True)
        parser.add_argument("--user", required=True)
    add.add_argument(
        "--role",
        choices=[str(role) for role in Role],
        default=str(Role.READER),
        help="reader: sees private repositories; writer: uploads; owner: deletes and manages (default: %(default)s)",
    )
    listing = verb(verbs, common, "list", _member_list, "show an organization's members")
    listing.add_argument("--org", required=True)


def _org_add(args: argparse.Namespace) -> int:
    with changing(args) as session:
        made = directory.add_org(session, shell(), args.name)
    return say(args, made, f"Organization {made.name!r} is made.")


def _org_list(args: argparse.Namespace) -> int:
    with reading(args) as session:
        orgs = directory.list_orgs(session)
    lines = [_org_line(org) for org in orgs]
    return say(args, orgs, "\n".join(lines) or "No organizations yet: khub registry org add NAME")


def _org_line(org: OrgInfo) -> str:
    limits = [
        f"{name} {value}"
        for name, value in (
            ("bytes", org.quota_bytes),
            ("max-file", org.max_file_bytes),
            ("max-files", org.max_commit_files),
        )
        if value is not None
    ]
    trusted = ["trusted"] if org.trusted_publisher else []
    about = [f"{org.members} members", f"{org.repositories} repositories", *trusted, *limits]
    return f"{org.name}: {', '.join(about)}"


def _org_remove(args: argparse.Namespace) -> int:
    with changing(args) as session:
        directory.remove_org(session, shell(), args.name, with_repositories=args.with_repositories)
    return say(args, {"removed": args.name}, f"Organization {args.name!r} is removed.")


def _org_trust(args: argparse.Namespace) -> int:
    with changing(args) as session:
        org = directory.set_trusted(session, shell(), args.name, not args.off)
    state = "is trusted" if org.trusted_publisher else "is not trusted"
    return say(args, org, f"Organization {org.name!r} {state}.")


def _org_quota(args: argparse.Namespace) -> int:
    names = ("quota_bytes", "max_file_bytes", "max_commit_files")
    changes = {name: getattr(args, name) for name in names if hasattr(args, name)}
    with changing(args) as session:
        row = directory.find_org(session, args.name)
        for name, value in changes.items():
            setattr(row, name, value)
        if changes:
            record(session, shell(), "org.quota", args.name, **changes)
        org, used = directory.org_info(session, row), used_bytes(session, row.id)
    return say(args, {**asdict(org), "used_bytes": used}, f"{_org_line(org)}, {used} bytes used")


def _user_add(args: argparse.Namespace) -> int:
    with changing(args) as session:
        made = directory.add_user(session, shell(), args.name, args.full_name, args.operator)
    return say(args, made, f"User {made.name!r} is made.")


def _user_list(args: argparse.Namespace) -> int:
    with reading(args) as session:
        users = directory.list_users(session)
    lines = [_user_line(user) for user in users]
    return say(args, users, "\n".join(lines) or "No users yet: khub registry user add NAME")


def _user_line(user: UserInfo) -> str:
    roles = [f"{role} of {org}" for org, role in user.roles.items()]
    about = (["operator"] if user.operator else []) + roles
    named = f" ({user.full_name})" if user.full_name else ""
    return f"{user.name}{named}: {', '.join(about) or 'no member anywhere'}"


def _user_remove(args: argparse.Namespace) -> int:
    with changing(args) as session:
        directory.remove_user(session, shell(), args.name)
    return say(args, {"removed": args.name}, f"User {args.name!r} is removed.")


def _member_add(args: argparse.Namespace) -> int:
    with changing(args) as session:
        directory.set_role(session, shell(), args.org, args.user, Role[args.role.upper()])
    made = {"org": args.org, "user": args.user, "role": args.role}
    return say(args, made, f"{args.user!r} is {args.role} of {args.org!r}.")


def _member_remove(args: argparse.Namespace) -> int:
    with changing(args) as session:
        directory.remove_member(session, shell(), args.org, args.user)
    gone = {"org": args.org, "removed": args.user}
    return say(args, gone, f"{args.user!r} is no member of {args.org!r} any more.")


def _member_list(args: argparse.Namespace) -> int:
    with reading(args) as session:
        members = directory.list_members(session, args.org)
    rows = [{"user": name, "role": role} for name, role in members.items()]
    lines = [f"{role:6}  {name}" for name, role in members.items()]
    return say(args, rows, "\n".join(lines) or f"{args.org!r} has no members.")
