"""Organizations, users and who is what in which: changes and lists, each change with its entry in the log.

Users and organizations share one space of names, so that a commit's author says who it was. Callers bring
the session and the actor, and have asked `may` where the actor is not the operator at the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hub_loader.errors import UsageError

from ..clock import utc_now
from ..locks import lock_names, put
from ..models import Member, Org, Repo, Token, User
from ..names import check_org
from ..naming import taken_by
from .audit import Actor, record
from .identity import Role


@dataclass(frozen=True)
class OrgInfo:
    """An organization and how much it has; None: the hub's default holds."""

    name: str
    trusted_publisher: bool
    quota_bytes: int | None
    max_file_bytes: int | None
    max_commit_files: int | None
    members: int
    repositories: int


@dataclass(frozen=True)
class UserInfo:
    """A user with the role in each organization."""

    name: str
    full_name: str
    operator: bool
    created_at: datetime
    roles: dict[str, str]


def find_org(session: Session, name: str) -> Org:
    """The organization's row. Raises UsageError."""
    row = session.scalar(select(Org).where(Org.name == name))
    if row is None:
        raise UsageError(f"No organization {name!r}: `khub registry org list` shows them.")
    return row


def find_user(session: Session, name: str) -> User:
    """The user's row. Raises UsageError."""
    row = session.scalar(select(User).where(User.name == name))
    if row is None:
        raise UsageError(f"No user {name!r}: `khub registry user list` shows them.")
    return row


def ensure_org(session: Session, actor: Actor, name: str) -> Org:
    """The organization's row, made if it is new. Raises RequestError for a bad name, UsageError for a user's."""
    lock_names(session)
    row = session.scalar(select(Org).where(Org.name == name))
    if row is not None:
        return row
    check_org(name)
    _require_free(session, name)
    row = Org(name=name)
    session.add(row)
    session.flush()
    record(session, actor, "org.add", name)
    return row


def add_org(session: Session, actor: Actor, name: str) -> OrgInfo:
    """Raises UsageError if the name is taken, RequestError for a bad one."""
    lock_names(session)
    if session.scalar(select(Org.id).where(Org.name == name)) is not None:
        raise UsageError(f"The organization {name!r} exists already.")
    return org_info(session, ensure_org(session, actor, name))


def list_orgs(session: Session) -> list[OrgInfo]:
    """Every organization, by name."""
    return [org_info(session, row) for row in session.scalars(select(Org).order_by(Org.name))]


def org_info(session: Session, row: Org) -> OrgInfo:
    """An organization's row as it may be shown."""
    members = session.scalar(select(func.count()).select_from(Member).where(Member.org_id == row.id))
    repos = session.scalar(select(func.count()).select_from(Repo).where(Repo.org_id == row.id))
    return OrgInfo(
        row.name,
        row.trusted_publisher,
        row.quota_bytes,
        row.max_file_bytes,
        row.max_commit_files,
        members or 0,
        repos or 0,
    )


def remove_org(session: Session, actor: Actor, name: str, *, with_repositories: bool) -> None:
    """Remove it with its tokens and publishers. Raises UsageError while it has repositories, unless told."""
    row = find_org(session, name)
    repos = org_info(session, row).repositories
    if repos and not with_repositories:
        raise UsageError(
            f"{name!r} has {repos} repositories, which would go with it: say --with-repositories."
        )
    record(session, actor, "org.remove", name, repositories=repos)
    session.delete(row)


def set_trusted(session: Session, actor: Actor, name: str, trusted: bool) -> OrgInfo:
    """Say to clients that this organization's kernels may run without a question."""
    row = find_org(session, name)
    row.trusted_publisher = trusted
    record(session, actor, "org.trust", name, trusted=trusted)
    return org_info(session, row)


def add_user(
    session: Session, actor: Actor, name: str, full_name: str = "", operator: bool = False
) -> UserInfo:
    """Raises UsageError if the name is taken, RequestError for a bad one."""
    check_org(name)
    lock_names(session)
    _require_free(session, name)
    row = User(name=name, full_name=full_name, operator=operator, created_at=utc_now())
    session.add(row)
    session.flush()
    record(session, actor, "user.add", name, operator=operator)
    return user_info(session, row)


def list_users(session: Session) -> list[UserInfo]:
    """Every user, by name."""
    return [user_info(session, row) for row in session.scalars(select(User).order_by(User.name))]


def user_info(session: Session, row: User) -> UserInfo:
    """A user's row as it may be shown."""
    memberships = session.execute(
        select(Org.name, Member.role)
        .join(Org, Org.id == Member.org_id)
        .where(Member.user_id == row.id)
        .order_by(Org.name)
    )
    return UserInfo(row.name, row.full_name, row.operator, row.created_at, dict(memberships.all()))


def remove_user(session: Session, actor: Actor, name: str) -> None:
    """Remove a user with memberships and tokens; the log and commits keep the name. Raises UsageError."""
    row = find_user(session, name)
    tokens = session.scalar(select(func.count()).select_from(Token).where(Token.user_id == row.id))
    record(session, actor, "user.remove", name, tokens=tokens)
    session.delete(row)


def set_role(session: Session, actor: Actor, org: str, user: str, role: Role) -> None:
    """Make the user a member with that role, or change the role. Raises UsageError."""
    org_row, user_row = find_org(session, org), find_user(session, user)
    member = session.get(Member, (org_row.id, user_row.id))
    before = None if member is None else member.role
    put(session, Member, {"org_id": org_row.id, "user_id": user_row.id, "role": str(role)})
    record(session, actor, "member.set", org, user=user, role=str(role), before=before)


def remove_member(session: Session, actor: Actor, org: str, user: str) -> None:
    """Take the user out of the organization; the user's tokens lose what the role gave. Raises UsageError."""
    member = session.get(Member, (find_org(session, org).id, find_user(session, user).id))
    if member is None:
        raise UsageError(f"{user!r} is no member of {org!r}.")
    record(session, actor, "member.remove", org, user=user, role=member.role)
    session.delete(member)


def list_members(session: Session, org: str) -> dict[str, str]:
    """Users of the organization with their roles, by name. Raises UsageError."""
    rows = session.execute(
        select(User.name, Member.role)
        .join(Member, Member.user_id == User.id)
        .where(Member.org_id == find_org(session, org).id)
        .order_by(User.name)
    )
    return dict(rows.all())


def _require_free(session: Session, name: str) -> None:
    if (taken := taken_by(session, name)) is not None:
        kind, spelling = taken
        raise UsageError(
            f"{spelling!r} is {'an' if kind == 'organization' else 'a'} {kind}: users and organizations share one "
            "space of names, in which case does not count."
        )
