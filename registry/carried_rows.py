"""Read from the tables what an export carries."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from hub_loader.errors import IntegrityError, UsageError

from .blobs import BlobStore
from .carried import Carried, Point
from .carried_copy import Copied, leave_out
from .mirrored import Origin, claims, origin_of
from .models import Commit, Mirror, Org, Ref, Repo, TreeEntry
from .names import RepoName
from .store import RepoInfo, require_repo
from .tree import File


def all_repos(session: Session) -> set[RepoName]:
    """Every repository, but for copies of which no commit was asked for yet."""
    empty = Repo.id.in_(select(Mirror.repo_id)) & ~Repo.id.in_(select(Commit.repo_id))
    rows = session.execute(select(Org.name, Repo.name).join(Repo, Repo.org_id == Org.id).where(~empty))
    return {RepoName(org, name) for org, name in rows}


def read_repo(session: Session, repo: RepoName) -> Carried:
    """The repository's branches and tags, the commits they lead to, and those commits' files.

    Of a copy all commits that are here: they do not lead to each other.
    """
    found = require_repo(session, repo)
    origin = origin_of(session, repo)
    query = select(Ref.name, Ref.commit_oid).where(Ref.repo_id == found.repo_id).order_by(Ref.name)
    wanted = query.where(or_(Ref.name.startswith("heads/"), Ref.name.startswith("tags/")))
    refs = dict(session.execute(wanted).all())
    if origin is None:
        commits = _history(session, found, refs)
    else:
        commits = _copied(session, found, origin)
        refs = {name: oid for name, oid in refs.items() if oid in commits}
    trees = {oid: _files(session, found.repo_id, oid) for oid in {point.tree for point in commits.values()}}
    copied = None
    if origin is not None:
        claimed = claims(session, [file for tree in trees.values() for file in tree.values()])
        copied = Copied(origin.upstream, origin.kind, origin.checked_at, claimed)
    return Carried(repo, found.private, found.gated, found.created_at, refs, commits, trees, copied)


def without_missing(carried: Carried, blobs: BlobStore) -> Carried:
    """A copy without the content that was collected since it was fetched; others as they are."""
    if carried.copied is None:
        return carried
    named = {file.sha256 for file in carried.files()}
    trees, lost = leave_out(carried.trees, (sha256 for sha256 in named if blobs.size(sha256) is None))
    copied = replace(carried.copied, claims={**carried.copied.claims, **lost})
    return replace(carried, trees=trees, copied=copied)


def _history(session: Session, found: RepoInfo, refs: dict[str, str]) -> dict[str, Point]:
    commits: dict[str, Point] = {}
    for head in refs.values():
        at: str | None = head
        while at is not None and at not in commits:
            row = session.get(Commit, (found.repo_id, at))
            if row is None:
                raise IntegrityError(f"{found.repo} lacks the commit {at}: `khub registry fsck` says more.")
            commits[at] = _point(row)
            at = row.parent_oid
    return commits


def _copied(session: Session, found: RepoInfo, origin: Origin) -> dict[str, Point]:
    commits = {
        row.oid: _point(row)
        for row in session.scalars(select(Commit).where(Commit.repo_id == found.repo_id).order_by(Commit.oid))
    }
    if not commits:
        raise UsageError(
            f"{found.repo} is a copy of {origin.upstream}/{found.repo} of which nothing was fetched yet: load it once."
        )
    return commits


def _point(row: Commit) -> Point:
    return Point(row.parent_oid, row.tree_oid, row.author, row.message, row.created_at)


def _files(session: Session, repo_id: int, tree: str) -> dict[str, File]:
    columns = (TreeEntry.path, TreeEntry.oid, TreeEntry.sha256, TreeEntry.size, TreeEntry.lfs)
    rows = session.execute(
        select(*columns)
        .where(TreeEntry.repo_id == repo_id, TreeEntry.tree_oid == tree)
        .order_by(TreeEntry.path)
    )
    return {
        path: File(oid, sha256, size, lfs)
        for path, oid, sha256, size, lfs in rows
        if sha256 is not None and size is not None
    }
