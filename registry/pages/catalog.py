"""Which repositories there are, and finding them by name, organization or operator.

What a repository's newest version says of itself is read once for each commit and kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Literal

from sqlalchemy import select

from ..access import granted_repos
from ..accounts.identity import Identity
from ..blobs import BlobStore
from ..mirrored import is_awaited
from ..models import Commit, Org, Ref, Repo
from ..names import RepoName
from ..store import MAIN, Revision, Store
from ..tree import Entry, File
from .downloads import daily_downloads
from .matrix import Table, matrix
from .package import Package, read_package
from .reader import may_read

MAX_FILES = 20_000
_KEPT_PACKAGES = 128
Sort = Literal["downloads", "updated", "name"]


@dataclass(frozen=True)
class Listed:
    """A repository in a list: what its newest version (None: it has no version branch) says of itself."""

    repo: RepoName
    version: int | None
    commit: str
    updated: datetime
    downloads: int
    summary: str
    operators: tuple[str, ...]
    backends: tuple[str, ...]
    variants: int


@dataclass(frozen=True)
class Snapshot:
    """A commit as the pages show it: its files by path, and what they say."""

    revision: Revision
    entries: Mapping[str, Entry]
    package: Package

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Its compatibility matrix, made when a page first shows it."""
        return matrix(self.package.backends)


@dataclass(frozen=True)
class _Facts:
    commit: str
    summary: str
    operators: tuple[str, ...]
    backends: tuple[str, ...]
    variants: int


class Catalog:
    """The repositories of one registry, for reading; safe to use from several threads."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store, self._blobs = store, blobs
        self._lock = threading.Lock()
        self._facts: dict[int, _Facts] = {}
        self._snapshots: OrderedDict[tuple[int, str], Snapshot] = OrderedDict()

    def snapshot(self, revision: Revision) -> Snapshot:
        """The commit, read once; the last _KEPT_PACKAGES are kept."""
        key = (revision.repo_id, revision.commit)
        with self._lock:
            if key in self._snapshots:
                self._snapshots.move_to_end(key)
                return self._snapshots[key]
        entries, package = self._read(revision)
        made = Snapshot(revision, entries, package)
        with self._lock:
            self._snapshots[key] = made
            while len(self._snapshots) > _KEPT_PACKAGES:
                self._snapshots.popitem(last=False)
        return made

    def listed(self, identity: Identity, org: str | None = None) -> list[Listed]:
        """Every repository that somebody may know of, or those of one organization, by name."""
        found = []
        with self._store.read() as session:
            granted = granted_repos(session, identity)
        for revision, version in self._newest(org):
            repo, gated, let_in = revision.repo, revision.gated is not None, revision.repo_id in granted
            if may_read(identity, repo, private=revision.private, gated=gated, granted=let_in):
                found.append((revision, version, self._facts_of(revision)))
            elif not revision.private:
                found.append((revision, version, _Facts("", "Gated: ask its owners for access.", (), (), 0)))
        with self._store.read() as session:
            counts = daily_downloads(session, [revision.repo_id for revision, _, _ in found])
        since = date.today() - timedelta(days=30)
        return [
            Listed(
                revision.repo,
                version,
                revision.commit,
                revision.date,
                sum(count for day, count in counts.get(revision.repo_id, {}).items() if day > since),
                facts.summary,
                facts.operators,
                facts.backends,
                facts.variants,
            )
            for revision, version, facts in found
        ]

    def org_exists(self, org: str) -> bool:
        """Whether there is such an organization."""
        return self._store.has_org(org)

    def downloads(self, repo_id: int) -> Mapping[date, int]:
        """A repository's downloads by day."""
        with self._store.read() as session:
            return daily_downloads(session, [repo_id]).get(repo_id, {})

    def _facts_of(self, revision: Revision) -> _Facts:
        facts = self._facts.get(revision.repo_id)
        if facts is None or facts.commit != revision.commit:
            _, package = self._read(revision)
            backends = dict.fromkeys(info.backend.type for info in package.variants.values())
            facts = _Facts(
                revision.commit,
                package.summary,
                package.operators,
                tuple(sorted(backends)),
                len(package.variants),
            )
            self._facts[revision.repo_id] = facts
        return facts

    def _newest(self, org: str | None) -> list[tuple[Revision, int | None]]:
        """The commit of each repository's highest version branch, else of `main`."""
        commit = (Commit.oid, Commit.tree_oid, Commit.created_at)
        query = (
            select(Repo.id, Org.name, Repo.name, Ref.name, *commit, Repo.private, Repo.gated)
            .join(Org, Org.id == Repo.org_id)
            .join(Ref, Ref.repo_id == Repo.id)
            .join(Commit, (Commit.repo_id == Repo.id) & (Commit.oid == Ref.commit_oid))
            .where(Ref.name.like("heads/%"))
        )
        if org is not None:
            query = query.where(Org.name == org)
        best: dict[int, tuple[Revision, int | None]] = {}
        with self._store.read() as session:
            for repo_id, owner, name, ref, oid, tree, created, private, gated in session.execute(query):
                version = version_of(ref.removeprefix("heads/"))
                if version is None and ref != f"heads/{MAIN}":
                    continue
                known = best.get(repo_id)
                if known is None or (version or -1) > (known[1] or -1):
                    repo = RepoName(owner, name)
                    best[repo_id] = Revision(repo, repo_id, oid, tree, created, private, gated), version
        return sorted(best.values(), key=lambda item: str(item[0].repo).lower())

    def _read(self, revision: Revision) -> tuple[dict[str, Entry], Package]:
        listed = self._store.list_tree(revision, "", True, "", MAX_FILES)
        entries = {entry.path: entry for entry in listed if entry.file is not None}

        def read(path: str, limit: int) -> bytes | None:
            entry = entries.get(path)
            return None if entry is None or entry.file is None else self.content(entry.file, limit)

        return entries, read_package(str(revision.repo), entries, read)

    def content(self, file: File, limit: int) -> bytes | None:
        """A file's bytes; None if it has more than `limit`, or is a mirror's and was never fetched."""
        if file.size > limit or is_awaited(file.sha256):
            return None
        try:
            return b"".join(self._blobs.read(file.sha256))
        except FileNotFoundError:
            return None


def version_of(branch: str) -> int | None:
    """1 of "v1"; None for a branch that is no version."""
    digits = branch[1:]
    is_version = branch.startswith("v") and digits.isascii() and digits.isdigit() and len(digits) < 10
    return int(digits) if is_version else None


def search(listed: Iterable[Listed], query: str) -> list[Listed]:
    """Those in which every word of the query is part of the name, the organization, an operator or the summary.

    A repository whose name has all of the words comes before one that has not, else the order stays.
    """
    words = query.lower().replace("/", " ").split()
    found = [item for item in listed if all(_says(item, word) for word in words)]
    return sorted(found, key=lambda item: not all(word in str(item.repo).lower() for word in words))


def sort(listed: Iterable[Listed], by: Sort) -> list[Listed]:
    """Most downloaded or last updated first, or by name."""
    if by == "name":
        return sorted(listed, key=lambda item: str(item.repo).lower())
    if by == "updated":
        return sorted(listed, key=lambda item: (item.updated, str(item.repo)), reverse=True)
    return sorted(listed, key=lambda item: (-item.downloads, -item.updated.timestamp(), str(item.repo)))


def _says(item: Listed, word: str) -> bool:
    spelled = word.replace("-", "_")
    return (
        word in str(item.repo).lower()
        or any(spelled in name.lower() for name in item.operators)
        or word in item.summary.lower()
        or word in item.backends
    )
