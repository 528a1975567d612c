"""How much an organization may hold, and how large its files and commits may be.

An organization's own limits come before the hub's; where neither says one, there is none. A file counts
once for an organization, however many commits and repositories of it hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ..db import Database
from ..errors import RequestError
from ..models import Org, Repo, TreeEntry
from ..tree import Add, File, Operation
from .settings import Settings, read_settings


@dataclass(frozen=True)
class Limits:
    """Bytes of an organization, bytes of a file, files of a commit; None: no limit."""

    quota_bytes: int | None = None
    max_file_bytes: int | None = None
    max_commit_files: int | None = None


def limits_of(org: Org, settings: Settings) -> Limits:
    """What holds for an organization."""

    def either(own: int | None, hub: int | None) -> int | None:
        return hub if own is None else own

    return Limits(
        either(org.quota_bytes, settings.quota_bytes),
        either(org.max_file_bytes, settings.max_file_bytes),
        either(org.max_commit_files, settings.max_commit_files),
    )


def check_commit(
    session: Session, repo_id: int, operations: Sequence[Operation], after: Mapping[str, File]
) -> None:
    """Hold a commit against its organization's limits, within the commit's transaction.

    `after` is what the repository would hold. Raises RequestError: 413 for a file or commit that is too
    large, 403 QuotaExceeded for an organization that would be.
    """
    org = session.scalars(select(Org).join(Repo, Repo.org_id == Org.id).where(Repo.id == repo_id)).one()
    limits = limits_of(org, read_settings(session))
    files = [operation for operation in operations if isinstance(operation, Add)]
    check_count(limits, org.name, len(operations))
    for operation in files:
        check_size(limits, operation.path, operation.file.size)
    if files:
        _check_quota(session, org, {file.sha256: file.size for file in after.values()}, "this commit")


def check_move(session: Session, repo_id: int, org_id: int) -> None:
    """Hold a repository that is to become another organization's against that one's quota.

    Raises RequestError 403 QuotaExceeded.
    """
    org = session.get_one(Org, org_id)
    if session.get_one(Repo, repo_id).org_id != org_id:
        _check_quota(session, org, _content(session, Repo.id == repo_id), "this repository")


def _check_quota(session: Session, org: Org, coming: Mapping[str, int], what: str) -> None:
    quota = limits_of(org, read_settings(session)).quota_bytes
    if quota is None:
        return
    others_wait = select(Org.id).where(Org.id == org.id).with_for_update(key_share=True)
    session.execute(others_wait)
    held = _content(session, Repo.org_id == org.id)
    used = sum(held.values())
    added = sum(size for sha256, size in coming.items() if sha256 not in held)
    if added and used + added > quota:
        raise RequestError(
            403,
            f"{org.name!r} holds {used} of {quota} bytes and {what} adds {added}: delete a repository, or "
            f"ask the hub's operator for `khub registry org quota {org.name} --bytes N`.",
            code="QuotaExceeded",
        )


def check_announced(database: Database, org: str, files: Iterable[tuple[object, object]]) -> None:
    """Hold (path, size) of files that are about to come against the limits, so that none comes in vain.

    What a client announces is a promise: the commit is checked by what came. Raises RequestError 413.
    """
    with database.read() as session:
        row = session.scalar(select(Org).where(Org.name == org))
        limits = Limits() if row is None else limits_of(row, read_settings(session))
    for path, size in files:
        if isinstance(size, int):
            check_size(limits, str(path), size)


def check_count(limits: Limits, org: str, files: int) -> None:
    """Raises RequestError 413 if a commit has too many files."""
    if limits.max_commit_files is not None and files > limits.max_commit_files:
        raise RequestError(
            413,
            f"This commit changes {files} files and {org!r} may change {limits.max_commit_files} at a time: "
            "make several commits.",
            code="TooManyFiles",
        )


def check_size(limits: Limits, path: str, size: int) -> None:
    """Raises RequestError 413 if a file is too large."""
    if limits.max_file_bytes is not None and size > limits.max_file_bytes:
        raise RequestError(
            413,
            f"{path!r} has {size} bytes and a file may have {limits.max_file_bytes} here: strip debug symbols, "
            "or build for fewer architectures.",
            code="FileTooLarge",
        )


def used_bytes(session: Session, org_id: int) -> int:
    """Bytes of all files that the organization's commits hold, each content counted once."""
    return sum(_content(session, Repo.org_id == org_id).values())


def _content(session: Session, of: ColumnElement[bool]) -> dict[str, int]:
    """Sizes by SHA-256 of all files that the repositories' commits hold."""
    rows = session.execute(
        select(TreeEntry.sha256, func.max(TreeEntry.size))
        .join(Repo, Repo.id == TreeEntry.repo_id)
        .where(of, TreeEntry.sha256.is_not(None))
        .group_by(TreeEntry.sha256)
    )
    return {sha256: size for sha256, size in rows if sha256 is not None and size is not None}
