"""A pull-through cache: what is not here is looked for at an upstream hub, checked, and kept.

A repository of the upstream becomes one of this hub's tables when it is first asked for, a commit when a request
first leads to it, a file's content when it is first read. Whatever the upstream has once answered is served
without it; references are asked for again after `ttl` seconds, and while it does not answer those of before count,
which the header `X-Mirror` says. A repository made on this hub always comes before the upstream's of its name.

In each process the first request for a thing asks, and the others for the same thing wait.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fnmatch import fnmatchcase

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from .blobs import BlobStore
from .clock import utc_now
from .errors import RequestError, unavailable
from .locks import insert_missing, insert_new
from .mirrored import Origin, awaited, claims, is_awaited, origin_of
from .models import Commit, Mirror, MirrorClaim, Ref, Repo, RepoMove, TreeEntry
from .names import RepoName, check_org, check_repo_name, is_commit
from .naming import ensure_org
from .store import Revision, Store, find_repo, other_spelling, tree_row
from .tree import File, blob_hash, entries
from .upstream import AbsentError, Found, SilentError, Upstream

TTL = 300.0
_PAUSE = 15.0  # seconds for which an upstream that did not answer is not asked again
_ABSENT = 60.0  # seconds for which what the upstream does not have is not asked for again
_KEPT = 10_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MirrorSettings:
    """The upstream's address and the token for it, and which repositories (`org/name` globs) are looked for there."""

    url: str
    token: str | None = field(default=None, repr=False)
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    ttl: float = TTL

    def allows(self, repo: RepoName) -> bool:
        """Whether the repository may come from the upstream: allowed, by default all are, and not denied."""
        name = str(repo)
        allowed = not self.allow or any(fnmatchcase(name, glob) for glob in self.allow)
        return allowed and not any(fnmatchcase(name, glob) for glob in self.deny)


class PullThrough:
    """The copies of an upstream's repositories in one registry. Safe to share between threads."""

    def __init__(self, settings: MirrorSettings, store: Store, blobs: BlobStore) -> None:
        self._settings, self._store, self._blobs = settings, store, blobs
        self._upstream = Upstream(settings.url, settings.token)
        self._turns = _Turns()
        self._silent_until = 0.0
        self._absent: OrderedDict[RepoName, float] = OrderedDict()

    def close(self) -> None:
        """Close the connections to the upstream."""
        self._upstream.close()

    def prepare(self, repo: RepoName, revision: str | None) -> str | None:
        """Have the repository, and the commit that `revision` leads to, in the tables, as far as the upstream has them.

        Returns what the answer says of it: None for a repository of this hub, "fresh", or "stale" with the reason.
        Raises RequestError 503 if only the upstream could answer and it does not.
        """
        origin, here = self._look(repo)
        if (here and (origin is None or origin.upstream != self._upstream.url)) or not self._may_ask(repo):
            return None
        if self._fresh(origin) and (revision is None or self._wanted(repo, revision) is None):
            return "fresh"
        with self._turns.take(repo):
            stale = self._refresh(repo)
            if revision is None or stale == "absent":
                return stale
            try:
                self._materialise(repo, revision)
            except RequestError as error:
                self._failed(error)
                raise
        return stale

    def content(self, revision: Revision, path: str, file: File) -> File:
        """The file with its true SHA-256, its content in the blob store.

        Raises RequestError 503 if the upstream does not answer or answers something else.
        """
        if not is_awaited(file.sha256) and self._blobs.size(file.sha256) is not None:
            return file
        with self._store.read() as session:
            origin = origin_of(session, revision.repo)
        if origin is None or origin.upstream != self._upstream.url or not self._may_ask(revision.repo):
            raise unavailable(f"The content of {path} in {revision.repo} is not here.")
        with self._turns.take((file.sha256, origin.repo_id)):
            known = self._known(origin.repo_id, [file])
            file = replace(file, sha256=known.get(file.oid, file.sha256))
            if not is_awaited(file.sha256) and self._blobs.keep(file.sha256) == file.size:
                return file
            self._ask_again()
            try:
                return self._fetch(origin, revision, path, file)
            except RequestError as error:
                self._failed(error)
                raise

    # -- repositories and their references

    def _may_ask(self, repo: RepoName) -> bool:
        try:
            check_org(repo.org), check_repo_name(repo.name)
        except RequestError:
            return False
        return self._settings.allows(repo)

    def _look(self, repo: RepoName) -> tuple[Origin | None, bool]:
        with self._store.read() as session:
            moved = session.get(RepoMove, (repo.org, repo.name)) is not None
            here = find_repo(session, repo) or other_spelling(session, repo)
            return origin_of(session, repo), moved or here is not None

    def _fresh(self, origin: Origin | None) -> bool:
        return origin is not None and utc_now() - origin.checked_at < timedelta(seconds=self._settings.ttl)

    def _refresh(self, repo: RepoName) -> str:
        origin, here = self._look(repo)
        if self._fresh(origin):
            return "fresh"
        if here and origin is None:
            return "absent"  # made on this hub in the meantime
        if self._absent.get(repo, 0) > time.monotonic():
            return "absent" if origin is None else "stale; the upstream no longer has it"
        try:
            self._ask_again()
            found = self._upstream.repo(repo)
        except AbsentError:
            self._absent[repo] = time.monotonic() + _ABSENT
            while len(self._absent) > _KEPT:
                self._absent.popitem(last=False)
            return "absent" if origin is None else "stale; the upstream no longer has it"
        except RequestError as error:
            self._failed(error)
            if origin is None:
                raise
            return f"stale; asked {origin.checked_at.isoformat()}Z"
        with self._store.write() as session:
            self._write(session, repo, found)
        return "fresh"

    def _write(self, session: Session, repo: RepoName, found: Found) -> None:
        now = utc_now()
        origin = origin_of(session, repo)
        if origin is None:
            row = {"org_id": ensure_org(session, repo.org), "name": repo.name, "created_at": now}
            if not insert_new(session, Repo, row):
                return
            info = find_repo(session, repo)
            assert info is not None
            origin = Origin(info.repo_id, self._upstream.url, found.kind, now)
            session.add(
                Mirror(repo_id=info.repo_id, upstream=self._upstream.url, kind=found.kind, checked_at=now)
            )
        session.execute(
            update(Mirror).where(Mirror.repo_id == origin.repo_id).values(kind=found.kind, checked_at=now)
        )
        session.execute(
            update(Repo).where(Repo.id == origin.repo_id).values(private=found.private, gated=found.gated)
        )
        session.execute(delete(Ref).where(Ref.repo_id == origin.repo_id))
        refs = [
            {"repo_id": origin.repo_id, "name": name, "commit_oid": oid}
            for name, oid in sorted(found.refs.items())
        ]
        insert_missing(session, Ref, refs)

    # -- commits

    def _wanted(self, repo: RepoName, revision: str) -> tuple[Origin, str, bool] | None:
        """The commit that the revision leads to and that is not here, and whether a reference names it."""
        names = [f"heads/{revision}", f"tags/{revision}"]
        if revision.startswith("refs/"):
            names = [revision.removeprefix("refs/")]
        with self._store.read() as session:
            origin = origin_of(session, repo)
            if origin is None:
                return None
            query = select(Ref.commit_oid).where(Ref.repo_id == origin.repo_id, Ref.name.in_(names))
            named = session.scalar(query.order_by(Ref.name).limit(1))
            oid = named or (revision if is_commit(revision) else None)
            if oid is None or session.get(Commit, (origin.repo_id, oid)) is not None:
                return None
            return origin, oid, named is not None

    def _materialise(self, repo: RepoName, revision: str) -> None:
        """Have the commit's files in the tables; nothing if the revision leads to none."""
        wanted = self._wanted(repo, revision)
        if wanted is None:
            return
        origin, oid, named = wanted
        self._ask_again()
        try:
            if not named:
                self._upstream.has_commit(origin.kind, repo, oid)
            files = self._upstream.files(origin.kind, repo, oid)
        except AbsentError:
            return
        self._add_commit(origin, repo, oid, files)

    def _add_commit(self, origin: Origin, repo: RepoName, oid: str, files: dict[str, File]) -> None:
        claimed = {file.oid: file.sha256 for file in files.values() if file.lfs}
        files = {path: replace(file, sha256=awaited(file.oid)) for path, file in files.items()}
        known = self._known(origin.repo_id, list(files.values()))
        tree, listed = entries(
            {path: replace(file, sha256=known.get(file.oid, file.sha256)) for path, file in files.items()}
        )
        commit = {
            "repo_id": origin.repo_id,
            "oid": oid,
            "parent_oid": None,
            "tree_oid": tree,
            "author": repo.org,
            "message": f"As on {origin.upstream}",
            "created_at": utc_now(),
        }
        with self._store.write() as session:
            rows = [{"oid": pointer, "sha256": sha256} for pointer, sha256 in sorted(claimed.items())]
            insert_missing(session, MirrorClaim, rows)
            insert_missing(session, TreeEntry, [tree_row(origin.repo_id, tree, entry) for entry in listed])
            insert_new(session, Commit, commit)

    def _known(self, repo_id: int, files: Sequence[File]) -> dict[str, str]:
        """The SHA-256 of those of the files that were fetched as part of another commit, by git's id."""
        found: dict[str, str] = {}
        with self._store.read() as session:
            for start in range(0, len(files), 500):
                oids = {file.oid for file in files[start : start + 500] if is_awaited(file.sha256)}
                query = select(TreeEntry.oid, TreeEntry.sha256).where(
                    TreeEntry.repo_id == repo_id, TreeEntry.oid.in_(oids)
                )
                for oid, sha256 in session.execute(query):
                    if sha256 is not None and not is_awaited(sha256):
                        found[oid] = sha256
        return found

    # -- content

    def _fetch(self, origin: Origin, revision: Revision, path: str, file: File) -> File:
        chunks = self._upstream.content(origin.kind, revision.repo, revision.commit, path, file.size)
        with self._store.read() as session:
            listed = claims(session, [file]).get(file.oid, file.sha256)
        try:
            expected = replace(file, sha256=listed)
            sha256 = self._blobs.put(_verified(chunks, expected, f"{path} of {revision.repo}"))
        except AbsentError:
            raise unavailable(f"The upstream no longer has {path} of {revision.repo}.") from None
        self._blobs.sync()
        if is_awaited(file.sha256):
            stand_in = (TreeEntry.repo_id == origin.repo_id, TreeEntry.sha256 == awaited(file.oid))
            with self._store.write() as session:
                session.execute(update(TreeEntry).where(*stand_in).values(sha256=sha256))
        return replace(file, sha256=sha256)

    # -- an upstream that does not answer

    def _ask_again(self) -> None:
        if time.monotonic() < self._silent_until:
            raise unavailable(
                f"The upstream {self._upstream.url} did not answer a moment ago: try again later."
            )

    def _failed(self, error: RequestError) -> None:
        _log.warning("%s", error.message)
        if isinstance(error, SilentError):  # and not one that answers nonsense
            self._silent_until = time.monotonic() + _PAUSE


def _verified(chunks: Iterator[bytes], file: File, what: str) -> Iterator[bytes]:
    """The same pieces; raises RequestError 503 at their end if they are not the file."""
    sha256, git, size = hashlib.sha256(), blob_hash(file.size), 0
    for chunk in chunks:
        size += len(chunk)
        sha256.update(chunk)
        git.update(chunk)
        yield chunk
    right = git.hexdigest() == file.oid if is_awaited(file.sha256) else sha256.hexdigest() == file.sha256
    if size != file.size or not right:
        raise unavailable(
            f"The upstream's content of {what} is not what its listing says ({size} of {file.size} bytes, or other "
            "ones): it is refused."
        )


class _Turns:
    """A lock for each key in use."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[object, tuple[threading.Lock, int]] = {}

    @contextmanager
    def take(self, key: object) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = lock, users - 1
