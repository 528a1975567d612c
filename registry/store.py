"""The registry's metadata: repositories, references, commits and the files in them.

Every public method is one transaction: it happens as a whole or not at all, and a commit is computed on
the very head it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    and_,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session

from .accounts.limits import check_commit
from .clock import utc_now
from .db import Database
from .errors import (
    RepoMovedError,
    RequestError,
    conflict,
    repo_not_found,
    revision_not_found,
)
from .locks import insert_missing, insert_new, lock_ref
from .models import Commit, Org, Ref, Repo, RepoMove, TreeEntry
from .names import RepoName, check_ref_name, check_repo_name
from .naming import ensure_org
from .tree import Entry, File, Operation, apply, commit_oid, entries

MAIN = "main"


@dataclass(frozen=True)
class Revision:
    """A commit that a branch, a tag or a commit id led to; `repo_id` is the repository's row."""

    repo: RepoName
    repo_id: int
    commit: str
    tree: str
    date: datetime
    private: bool = False
    gated: str | None = None


@dataclass(frozen=True)
class RepoInfo:
    """A repository's row. `gated`: None, "auto" or "manual"."""

    repo: RepoName
    repo_id: int
    private: bool
    gated: str | None
    created_at: datetime


@dataclass(frozen=True)
class RefInfo:
    """A branch, tag or pull request: full name (`refs/heads/v1`), short name, commit."""

    ref: str
    name: str
    commit: str


class Store(Database):
    """The metadata of one data folder, as the protocol needs it."""

    # -- repositories

    def create_repo(self, repo: RepoName, author: str, *, private: bool = False) -> bool:
        """Create it with an empty first commit on `main`; False if it exists. Raises RequestError 400.

        A name that another repository had before is free, and leads to the new one from then on.
        """
        check_repo_name(repo.name)
        with self.write() as session:
            if find_repo(session, repo) is not None:
                return False
            session.execute(delete(RepoMove).where(RepoMove.org == repo.org, RepoMove.name == repo.name))
            org_id = ensure_org(session, repo.org)
            row = {"org_id": org_id, "name": repo.name, "created_at": utc_now(), "private": private}
            if not insert_new(session, Repo, row):
                return False
            repo_id = require_repo(session, repo).repo_id
            first = insert_commit(session, repo_id, None, {}, author, "Create the repository")
            session.add(Ref(repo_id=repo_id, name=f"heads/{MAIN}", commit_oid=first))
            return True

    def delete_repo(self, repo: RepoName) -> None:
        """Forget the repository, its commits and references. Blobs stay: others may share them."""
        with self.write() as session:
            session.execute(delete(Repo).where(Repo.id == require_repo(session, repo).repo_id))

    def repo(self, repo: RepoName) -> RepoInfo:
        """The repository's row. Raises RequestError 404, or 307 if it has another name now."""
        with self.read() as session:
            return require_repo(session, repo)

    # -- revisions and their files

    def resolve(self, repo: RepoName, revision: str) -> Revision:
        """The commit of a branch or tag (short or full name) or commit id. Raises RequestError 404."""
        with self.read() as session:
            return find_revision(session, repo, revision)

    def refs(self, repo: RepoName) -> list[RefInfo]:
        """Every branch, tag and pull request, by name."""
        with self.read() as session:
            repo_id = require_repo(session, repo).repo_id
            rows = session.execute(
                select(Ref.name, Ref.commit_oid).where(Ref.repo_id == repo_id).order_by(Ref.name)
            )
            return [RefInfo(f"refs/{name}", name.partition("/")[2], oid) for name, oid in rows]

    def entry(self, revision: Revision, path: str) -> Entry | None:
        """The file or folder at `path`; None if there is none."""
        found = self.entries_at(revision, [path])
        return found[0] if found else None

    def entries_at(self, revision: Revision, paths: Sequence[str]) -> list[Entry]:
        """Those of `paths` that exist, files and folders."""
        with self.read() as session:
            return select_entries(session, revision, TreeEntry.path.in_(paths))

    def list_tree(
        self, revision: Revision, folder: str, recursive: bool, after: str, limit: int
    ) -> list[Entry]:
        """Up to `limit` entries of a folder ("" is the root) whose path sorts after `after`."""
        conditions: list[Any] = [TreeEntry.path > after]
        if not recursive:
            conditions.append(TreeEntry.folder == folder)
        elif folder:  # "0" is the character after "/"
            conditions += [TreeEntry.path > folder + "/", TreeEntry.path < folder + "0"]
        with self.read() as session:
            return select_entries(session, revision, *conditions, limit=limit)

    # -- commits

    def commit(
        self,
        repo: RepoName,
        branch: str,
        operations: Sequence[Operation],
        *,
        message: str,
        author: str,
        parent: str | None = None,
    ) -> str:
        """Apply the operations to the branch's head and move the branch; returns the commit's id.

        `parent`, a commit id or its first digits, makes the commit conditional on the head being that one.
        Raises RequestError: 404 without repository or branch, 412 if the head has moved, what `apply` raises.
        """
        with self.write() as session:
            head, ref = branch_head(session, repo, branch)
            check_parent(head, branch, parent)
            files = apply(snapshot(session, head), operations)
            check_commit(session, head.repo_id, operations, files)
            oid = insert_commit(session, head.repo_id, head, files, author, message)
            session.execute(
                update(Ref).where(Ref.repo_id == head.repo_id, Ref.name == ref).values(commit_oid=oid)
            )
            return oid

    # -- references

    def create_branch(self, repo: RepoName, name: str, start: str) -> None:
        """A branch at the revision `start`. Raises RequestError 400, 404 or 409."""
        self._create_ref(repo, "heads", name, start)

    def create_tag(self, repo: RepoName, name: str, revision: str) -> None:
        """A tag at `revision`. Raises RequestError 400, 404 or 409."""
        self._create_ref(repo, "tags", name, revision)

    def _create_ref(self, repo: RepoName, kind: str, name: str, revision: str) -> None:
        check_ref_name(name)
        with self.write() as session:
            target = find_revision(session, repo, revision)
            row = {"repo_id": target.repo_id, "name": f"{kind}/{name}", "commit_oid": target.commit}
            if not insert_new(session, Ref, row):
                raise conflict(f"Reference already exists: {repo} has {kind}/{name}.")

    def delete_branch(self, repo: RepoName, name: str) -> None:
        """Remove a branch; its commits stay reachable by id. Raises RequestError 403 for `main`, 404."""
        if name == MAIN:
            raise RequestError(403, f"The branch {MAIN!r} of {repo} is protected: it cannot be deleted.")
        self._delete_ref(repo, "heads", name)

    def delete_tag(self, repo: RepoName, name: str) -> None:
        """Remove a tag. Raises RequestError 404."""
        self._delete_ref(repo, "tags", name)

    def _delete_ref(self, repo: RepoName, kind: str, name: str) -> None:
        with self.write() as session:
            lock_ref(session, repo, f"{kind}/{name}")
            row = session.get(Ref, (require_repo(session, repo).repo_id, f"{kind}/{name}"))
            if row is None:
                raise revision_not_found(str(repo), f"refs/{kind}/{name}")
            session.delete(row)

    def has_org(self, org: str) -> bool:
        """Whether the organization exists."""
        with self.read() as session:
            return session.scalar(select(Org.id).where(Org.name == org)) is not None


def find_repo(session: Session, repo: RepoName) -> RepoInfo | None:
    """The repository's row, if there is one of that name."""
    row = session.execute(
        select(Repo.id, Repo.private, Repo.gated, Repo.created_at)
        .join(Org, Org.id == Repo.org_id)
        .where(Org.name == repo.org, Repo.name == repo.name)
    ).first()
    return None if row is None else RepoInfo(repo, *row)


def require_repo(session: Session, repo: RepoName) -> RepoInfo:
    """The repository's row. Raises RequestError 404, or 307 if it has another name now."""
    found = find_repo(session, repo)
    if found is None:
        raise _absent(session, repo)
    return found


def _absent(session: Session, repo: RepoName) -> RequestError:
    moved = session.execute(
        select(Org.name, Repo.name)
        .join(Repo, Repo.org_id == Org.id)
        .join(RepoMove, RepoMove.repo_id == Repo.id)
        .where(RepoMove.org == repo.org, RepoMove.name == repo.name)
    ).first()
    if moved is not None:
        return RepoMovedError(str(repo), *moved)
    found = other_spelling(session, repo)
    return repo_not_found(str(repo)) if found is None else RepoMovedError(str(repo), found.org, found.name)


def other_spelling(session: Session, repo: RepoName) -> RepoName | None:
    """The one repository whose name differs from this by case alone."""
    names = select(Org.name, Repo.name).join(Repo, Repo.org_id == Org.id)
    same = (func.lower(Org.name) == repo.org.lower(), func.lower(Repo.name) == repo.name.lower())
    found = session.execute(names.where(*same).limit(2)).all()
    return RepoName(*found[0]) if len(found) == 1 and RepoName(*found[0]) != repo else None


# One row for a repository that exists; its commit is null if nothing answers to the revision.
_FIND_REVISION = (
    select(Repo.id, Repo.private, Repo.gated, Commit.oid, Commit.tree_oid, Commit.created_at)
    .join(Org, Org.id == Repo.org_id)
    .outerjoin(Ref, and_(Ref.repo_id == Repo.id, Ref.name.in_([bindparam("ref"), bindparam("other_ref")])))
    .outerjoin(
        Commit,
        and_(Commit.repo_id == Repo.id, Commit.oid == func.coalesce(Ref.commit_oid, bindparam("oid"))),
    )
    .where(Org.name == bindparam("org"), Repo.name == bindparam("name"))
    .order_by(Ref.name)  # a branch before a tag of the same name
    .limit(1)
)


def find_revision(session: Session, repo: RepoName, revision: str) -> Revision:
    """What `Store.resolve` returns, in the caller's transaction."""
    if revision.startswith("refs/"):
        ref = other_ref = revision.removeprefix("refs/")
    else:
        ref, other_ref = f"heads/{revision}", f"tags/{revision}"
    names = {"org": repo.org, "name": repo.name, "ref": ref, "other_ref": other_ref, "oid": revision}
    row = session.execute(_FIND_REVISION, names).first()
    if row is None:
        raise _absent(session, repo)
    repo_id, private, gated, oid, tree_oid, date = row
    if oid is None:
        raise revision_not_found(str(repo), revision)
    return Revision(repo, repo_id, oid, tree_oid, date, private, gated)


def branch_head(session: Session, repo: RepoName, branch: str) -> tuple[Revision, str]:
    """The commit that a commit to `branch` builds on, and its reference: a branch, or `refs/pr/<num>`."""
    ref = branch.removeprefix("refs/")
    if not branch.startswith(("refs/heads/", "refs/pr/")):
        ref = f"heads/{branch}"
    lock_ref(session, repo, ref)
    return find_revision(session, repo, f"refs/{ref}"), ref


def select_entries(
    session: Session, revision: Revision, *conditions: Any, limit: int | None = None
) -> list[Entry]:
    """The revision's entries that meet all conditions, by path."""
    rows = session.execute(
        select(TreeEntry.path, TreeEntry.oid, TreeEntry.sha256, TreeEntry.size, TreeEntry.lfs)
        .where(TreeEntry.repo_id == revision.repo_id, TreeEntry.tree_oid == revision.tree, *conditions)
        .order_by(TreeEntry.path)
        .limit(limit)
    )
    return [
        Entry(path, "directory", oid)
        if sha256 is None or size is None
        else Entry(path, "file", oid, File(oid, sha256, size, lfs))
        for path, oid, sha256, size, lfs in rows
    ]


def snapshot(session: Session, revision: Revision) -> dict[str, File]:
    """The revision's files by path."""
    return {entry.path: entry.file for entry in select_entries(session, revision) if entry.file is not None}


def check_parent(head: Revision, branch: str, parent: str | None) -> None:
    """Raises RequestError 412 if a commit insists on another head than the branch has."""
    if parent is not None and not head.commit.startswith(parent.lower()):
        stale = "A commit has happened since. Please refresh and try again."  # clients look for it
        raise RequestError(412, f"{stale} {branch!r} is at {head.commit}.")


def insert_commit(
    session: Session,
    repo_id: int,
    parent: Revision | None,
    files: dict[str, File],
    author: str,
    message: str,
) -> str:
    now = utc_now()
    tree_oid, listed = entries(files)
    parent_oid = None if parent is None else parent.commit
    oid = commit_oid(tree_oid, parent_oid, author, int(now.replace(tzinfo=timezone.utc).timestamp()), message)
    known = (
        select(TreeEntry.path).where(TreeEntry.repo_id == repo_id, TreeEntry.tree_oid == tree_oid).limit(1)
    )
    if listed and session.scalar(known) is None:
        insert_missing(session, TreeEntry, [tree_row(repo_id, tree_oid, entry) for entry in listed])
    commit = {
        "repo_id": repo_id,
        "oid": oid,
        "parent_oid": parent_oid,
        "tree_oid": tree_oid,
        "author": author,
        "message": message,
        "created_at": now,
    }
    insert_new(session, Commit, commit)  # the same commit made twice within a second is one commit
    return oid


def tree_row(repo_id: int, tree_oid: str, entry: Entry) -> dict[str, Any]:
    """A row of `tree_entries`."""
    return {
        "repo_id": repo_id,
        "tree_oid": tree_oid,
        "path": entry.path,
        "folder": entry.path.rpartition("/")[0],
        "oid": entry.oid,
        "sha256": entry.file and entry.file.sha256,
        "size": entry.file and entry.file.size,
        "lfs": entry.file is not None and entry.file.lfs,
    }
