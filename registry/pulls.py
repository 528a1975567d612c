"""Pull requests: commits kept at `refs/pr/<num>`, apart from branches, until somebody merges them.

Merging is by file: what the pull request changed since it left its branch is changed on the branch, unless
the branch changed the same file since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from .accounts.limits import check_commit
from .clock import utc_now
from .errors import RequestError, bad_request, conflict
from .history import move_ref
from .models import Pull, Ref, Repo
from .names import RepoName
from .store import Store, branch_head, check_parent, find_revision, insert_commit, require_repo, snapshot
from .tree import File, Operation, apply

OPEN, CLOSED, MERGED, DRAFT = "open", "closed", "merged", "draft"
STATES = [OPEN, CLOSED, MERGED, DRAFT]


@dataclass(frozen=True)
class PullInfo:
    """A pull request: `base` is the full name of the branch it is for, `merge_oid` the commit that merged it."""

    num: int
    title: str
    description: str
    author: str
    status: str
    base: str
    created_at: datetime
    merge_oid: str | None


def open_pull(
    store: Store,
    repo: RepoName,
    branch: str,
    operations: Sequence[Operation] | None,
    *,
    message: str,
    author: str,
    parent: str | None = None,
    description: str = "",
) -> tuple[int, str]:
    """A new pull request for `branch` and its head: a commit of the operations, or with None the branch's.

    Raises RequestError as `Store.commit` does. One without a commit is a draft, as on the Hub.
    """
    with store.write() as session:
        head, base = branch_head(session, repo, branch)
        if not base.startswith("heads/"):
            raise bad_request(f"A pull request is for a branch: commit to {branch!r} without create_pr.")
        check_parent(head, branch, parent)
        oid = head.commit
        if operations is not None:
            files = apply(snapshot(session, head), operations)
            check_commit(session, head.repo_id, operations, files)
            oid = insert_commit(session, head.repo_id, head, files, author, message)
        # Numbers are given one at a time; commits, which hold the repository's key, go on.
        numbering = select(Repo.id).where(Repo.id == head.repo_id)
        session.execute(numbering.with_for_update(key_share=True))
        num = 1 + (session.scalar(select(func.max(Pull.num)).where(Pull.repo_id == head.repo_id)) or 0)
        title, _, text = message.partition("\n\n")
        session.add(
            Pull(
                repo_id=head.repo_id,
                num=num,
                title=title[:200],
                description=description or text,
                author=author,
                status=DRAFT if operations is None else OPEN,
                base=base,
                base_oid=head.commit,
                created_at=utc_now(),
            )
        )
        session.add(Ref(repo_id=head.repo_id, name=f"pr/{num}", commit_oid=oid))
        return num, oid


def add_commit(
    store: Store,
    repo: RepoName,
    branch: str,
    operations: Sequence[Operation],
    *,
    message: str,
    author: str,
    parent: str | None = None,
) -> tuple[None, str]:
    """`Store.commit`, which opens no pull request: the commit's id, in the shape of `open_pull`."""
    return None, store.commit(repo, branch, operations, message=message, author=author, parent=parent)


def merge(store: Store, repo: RepoName, num: int, author: str) -> str:
    """Bring the pull request's changes to its branch as one commit; returns it. Raises RequestError 404 or 409."""
    with store.write() as session:
        row = _require(session, repo, num, lock=True)
        if row.status not in (OPEN, DRAFT):
            raise conflict(f"Pull request {num} of {repo} is {row.status}: only an open one can be merged.")
        head, base = branch_head(session, repo, f"refs/{row.base}")
        ours = snapshot(session, head)
        before = snapshot(session, find_revision(session, repo, row.base_oid))
        theirs = snapshot(session, find_revision(session, repo, f"refs/pr/{num}"))
        merged, conflicts = merge_files(before, ours, theirs)
        if conflicts:
            raise conflict(
                f"{row.base.removeprefix('heads/')!r} has changed {', '.join(conflicts[:5])} since: commit the "
                f"wanted content to refs/pr/{num} of a new pull request."
            )
        apply(merged, [])  # refuses a file where the other side made a folder
        message = f"{row.title} (#{num})"
        oid = insert_commit(session, head.repo_id, head, merged, author, message)
        move_ref(session, head.repo_id, base, oid)
        row.status, row.merge_oid = MERGED, oid
        return oid


def merge_files(
    before: Mapping[str, File], ours: Mapping[str, File], theirs: Mapping[str, File]
) -> tuple[dict[str, File], list[str]]:
    """`ours` with what `theirs` changed since `before`, and the paths that both changed differently. Pure."""
    merged = dict(ours)
    conflicts = []
    for path in sorted(before.keys() | theirs.keys()):
        old, mine, new = before.get(path), ours.get(path), theirs.get(path)
        if new in (old, mine):
            continue
        if mine != old:
            conflicts.append(path)
        elif new is None:
            del merged[path]
        else:
            merged[path] = new
    return merged, conflicts


def conflicting(store: Store, repo: RepoName, pull: PullInfo, base_oid: str) -> list[str]:
    """The paths that keep a pull request from being merged now."""
    with store.read() as session:
        before = snapshot(session, find_revision(session, repo, base_oid))
        ours = snapshot(session, find_revision(session, repo, f"refs/{pull.base}"))
        theirs = snapshot(session, find_revision(session, repo, f"refs/pr/{pull.num}"))
    return merge_files(before, ours, theirs)[1]


def set_status(store: Store, repo: RepoName, num: int, status: str) -> str:
    """Close or open a pull request; returns the status it had. Raises RequestError 404, or 409 once it is merged."""
    with store.write() as session:
        row = _require(session, repo, num, lock=True)
        if row.status == MERGED:
            raise conflict(f"Pull request {num} of {repo} is merged already.")
        before, row.status = row.status, status
        return before


def require_open(store: Store, repo: RepoName, num: int) -> None:
    """Raises RequestError 404 without such a pull request, 409 if it takes no more commits."""
    with store.read() as session:
        status = _require(session, repo, num).status
    if status not in (OPEN, DRAFT):
        raise conflict(f"Pull request {num} of {repo} is {status}: make a new one with create_pr.")


def find_pull(store: Store, repo: RepoName, num: int) -> tuple[PullInfo, str]:
    """A pull request and the commit where it left its branch. Raises RequestError 404."""
    with store.read() as session:
        row = _require(session, repo, num)
        return _info(row), row.base_oid


def list_pulls(
    session: Session, repo_id: int, *, statuses: Sequence[str], author: str, offset: int, limit: int
) -> tuple[int, list[PullInfo]]:
    """How many there are, and those from `offset` on, newest first."""
    conditions = [Pull.repo_id == repo_id, Pull.status.in_(statuses)]
    if author:
        conditions.append(Pull.author == author)
    total = session.scalar(select(func.count()).select_from(Pull).where(*conditions)) or 0
    query = select(Pull).where(*conditions).order_by(Pull.num.desc()).offset(offset).limit(limit)
    return total, [_info(row) for row in session.scalars(query)]


def _require(session: Session, repo: RepoName, num: int, *, lock: bool = False) -> Pull:
    repo_id = require_repo(session, repo).repo_id
    if lock:  # the repository first, as everywhere
        key = select(Repo.id).where(Repo.id == repo_id)
        session.execute(key.with_for_update(read=True, key_share=True))
    row = session.get(Pull, (repo_id, num), with_for_update=lock or None)
    if row is None:
        raise RequestError(
            404, f"{repo} has no pull request {num}: list them at /api/models/{repo}/discussions."
        )
    return row


def _info(row: Pull) -> PullInfo:
    return PullInfo(
        row.num,
        row.title,
        row.description,
        row.author,
        row.status,
        row.base,
        row.created_at,
        row.merge_oid,
    )
