"""The cache on disk: variants by content, and what each hub said last.

    variants/<key>/                       a variant's files, read-only; complete or absent, never in between.
                                          The key digests all of them: SHA-256 of metadata.json, or of the
    listings/<key>.json                   listing, where the repository has no index.json
    metadata/<key>.json                   metadata.json of a variant that was looked at and not fetched
    hubs/<endpoint>/<org>/<name>/branches.json      commit of each branch and tag, and when it was said
    hubs/<endpoint>/<org>/<name>/refs/<ref>.json    the same of one that was asked for by name
    hubs/<endpoint>/<org>/<name>/<commit>/index.json with index.json.dsse, or listing.json
    publishers/<endpoint>/<org>.json      whether the hub vouches for an organization
    builds/<key>/                         the package of a variant compiled here; the key digests source and environment
    sources/<endpoint>/<org>/<name>/<commit>/       published source that was compiled
    autotune/<key>.json                   a verdict on speed
    partial/<user>/<key>/                 a variant under way, or interrupted: the next attempt goes on from there
    locks/<name>                          held while something is asked for, so that one process asks and all know
    tmp/                                  small files under way; what is being removed

A commit never changes, so an index is asked for once. Everything appears by one atomic rename. A variant's
modification time is its last use; a process holds a shared lock on the folder of each variant it has used,
and garbage collection (gc.py) leaves those. `<endpoint>` is "locked" for what a lock file has proven: it is
the same from every hub. New folders get the permissions of the cache's own folder, so that a group can share it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from .cache_folder import read
from .errors import CacheError
from .manifest import INDEX_NAME
from .record import Record
from .trust.dsse import ENVELOPE_NAME
from .variant_store import VariantStore

LISTING_NAME = "listing.json"
LOCKED = "locked"
_T = TypeVar("_T")


class KnownRef(Record):
    """A branch or tag: its commit, when that was said (seconds since 1970), which repository answered, its name."""

    commit: str
    seen: float
    repo_id: str
    name: str = ""


class KnownRefs(Record):
    """The refs remembered by name; `listed` is when all of them were last listed, 0 for never."""

    listed: float
    refs: Mapping[str, KnownRef]


class Store(VariantStore):
    """The cache under one folder, which need not exist yet."""

    def refs(self, endpoint: str, repo_id: str) -> KnownRefs:
        """What is remembered of a repository's branches and tags.

        Raises:
            CacheError: a file is damaged or unreadable.
        """
        folder = self._repo(endpoint, repo_id)
        listed, refs = _read_json(folder / "branches.json", _branches) or (0.0, {})
        refs = dict(refs)
        for path in sorted((folder / "refs").glob("*.json")):
            ref = _read_json(path, _ref)
            name = unquote(path.stem)
            if ref is not None and (name not in refs or refs[name].seen < ref.seen):
                refs[name] = ref
        return KnownRefs(listed, refs)

    def remember_refs(self, endpoint: str, repo_id: str, commits: Mapping[str, str], moved_to: str) -> None:
        """Keep every branch and tag, as `moved_to`, the repository that answered, has them now."""
        data = {"seen": time.time(), "repo_id": moved_to, "commits": dict(commits)}
        self.write(self._repo(endpoint, repo_id) / "branches.json", _json(data))

    def remember_ref(self, endpoint: str, repo_id: str, name: str, commit: str, moved_to: str) -> None:
        """Keep one branch or tag."""
        data = {"seen": time.time(), "repo_id": moved_to, "commit": commit}
        self.write(self._repo(endpoint, repo_id) / "refs" / f"{quote(name, safe='')}.json", _json(data))

    def publisher(self, endpoint: str, org: str) -> tuple[bool, float] | None:
        """Whether the hub vouched for `org`, and when it said so; None if it was never asked.

        Raises:
            CacheError: the file is damaged or unreadable.
        """
        return _read_json(self._publisher(endpoint, org), lambda data: (data["trusted"] is True, _seen(data)))

    def remember_publisher(self, endpoint: str, org: str, trusted: bool) -> None:
        """Keep whether the hub vouches for `org`."""
        self.write(self._publisher(endpoint, org), _json({"seen": time.time(), "trusted": trusted}))

    def index_path(self, endpoint: str, repo_id: str, commit: str, name: str = INDEX_NAME) -> Path:
        """Where the index, or with `LISTING_NAME` the listing, of a commit is kept."""
        return self._repo(endpoint, repo_id) / commit / name

    def remember_index(
        self, endpoint: str, repo_id: str, commit: str, data: bytes, name: str = INDEX_NAME
    ) -> None:
        """Keep the index or listing of a commit."""
        self.write(self.index_path(endpoint, repo_id, commit, name), data)

    def forget_index(self, endpoint: str, repo_id: str, commit: str) -> None:
        """Remove the index, what signs it, and the listing of a commit."""
        with self.cache_errors():
            for name in (INDEX_NAME, ENVELOPE_NAME, LISTING_NAME):
                self.index_path(endpoint, repo_id, commit, name).unlink(missing_ok=True)

    def listing(self, key: str) -> Path:
        """The file with the listing of the variant `key`; there is none for a variant with an index."""
        return self.root / "listings" / f"{key}.json"

    def remember_listing(self, key: str, data: bytes) -> None:
        """Keep the listing of a variant."""
        self.write(self.listing(key), data)

    def metadata(self, key: str) -> Path:
        """Where metadata.json of a variant is kept that was looked at and not fetched; it may not exist."""
        return self.root / "metadata" / f"{key}.json"

    def remember_metadata(self, key: str, data: bytes) -> None:
        """Keep metadata.json of a variant."""
        self.write(self.metadata(key), data)

    def _repo(self, endpoint: str, repo_id: str) -> Path:
        return self.root / "hubs" / quote(endpoint, safe="") / repo_id

    def _publisher(self, endpoint: str, org: str) -> Path:
        return self.root / "publishers" / quote(endpoint, safe="") / f"{org}.json"


def _read_json(path: Path, parse: Callable[[Any], _T]) -> _T | None:
    data = read(path)
    if data is None:
        return None
    try:
        return parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CacheError(f"{path} is damaged: delete it, it will be fetched again") from None


def _json(data: Any) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=2) + "\n").encode()


def _seen(data: Any) -> float:
    return float(data["seen"])


def _ref(data: Any) -> KnownRef:
    return KnownRef(str(data["commit"]), _seen(data), str(data["repo_id"]))


def _branches(data: Any) -> tuple[float, dict[str, KnownRef]]:
    seen, repo_id = _seen(data), str(data["repo_id"])
    return seen, {name: KnownRef(str(commit), seen, repo_id) for name, commit in data["commits"].items()}
