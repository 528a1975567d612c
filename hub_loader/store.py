"""The cache on disk: variants by content, and what each hub said last.

    variants/<key>/                       a variant's files, read-only; complete or absent, never in between.
                                          The key digests all of them: SHA-256 of metadata.json, or of the
    listings/<key>.json                   listing, where the repository has no index.json
    metadata/<key>.json                   metadata.json of a variant that was looked at and not fetched
    hubs/<endpoint>/<org>/<name>/branches.json      commit of each branch and tag, and when it was said
    hubs/<endpoint>/<org>/<name>/refs/<ref>.json    the same of one that was asked for by name
    hubs/<endpoint>/<org>/<name>/<commit>/index.json, or listing.json
    publishers/<endpoint>/<org>.json      whether the hub vouches for an organization
    tmp/                                  downloads under way; renamed into place when whole

A commit never changes, so an index is asked for once. Everything appears by one atomic rename; of two
processes that fetch the same variant the first to finish wins and the other uses its work. `<endpoint>` is
"locked" for what a lock file has proven: it is the same from every hub.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from .errors import CacheError
from .manifest import INDEX_NAME

LISTING_NAME = "listing.json"
LOCKED = "locked"
_T = TypeVar("_T")


@dataclass(frozen=True)
class KnownRef:
    """A branch or tag: its commit, when that was said (seconds since 1970), and which repository answered."""

    commit: str
    seen: float
    repo_id: str


@dataclass(frozen=True)
class KnownRefs:
    """The refs remembered by name; `listed` is when all of them were last listed, 0 for never."""

    listed: float
    refs: Mapping[str, KnownRef]


class Store:
    """The cache under one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
        self._write(self._repo(endpoint, repo_id) / "branches.json", _json(data))

    def remember_ref(self, endpoint: str, repo_id: str, name: str, commit: str, moved_to: str) -> None:
        """Keep one branch or tag."""
        data = {"seen": time.time(), "repo_id": moved_to, "commit": commit}
        self._write(self._repo(endpoint, repo_id) / "refs" / f"{quote(name, safe='')}.json", _json(data))

    def publisher(self, endpoint: str, org: str) -> tuple[bool, float] | None:
        """Whether the hub vouched for `org`, and when it said so; None if it was never asked.

        Raises:
            CacheError: the file is damaged or unreadable.
        """
        return _read_json(self._publisher(endpoint, org), lambda data: (data["trusted"] is True, _seen(data)))

    def remember_publisher(self, endpoint: str, org: str, trusted: bool) -> None:
        """Keep whether the hub vouches for `org`."""
        self._write(self._publisher(endpoint, org), _json({"seen": time.time(), "trusted": trusted}))

    def index_path(self, endpoint: str, repo_id: str, commit: str, name: str = INDEX_NAME) -> Path:
        """Where the index, or with `LISTING_NAME` the listing, of a commit is kept."""
        return self._repo(endpoint, repo_id) / commit / name

    def remember_index(
        self, endpoint: str, repo_id: str, commit: str, data: bytes, name: str = INDEX_NAME
    ) -> None:
        """Keep the index or listing of a commit."""
        self._write(self.index_path(endpoint, repo_id, commit, name), data)

    def forget_index(self, endpoint: str, repo_id: str, commit: str) -> None:
        """Remove the index and the listing of a commit."""
        with self._cache_errors():
            for name in (INDEX_NAME, LISTING_NAME):
                self.index_path(endpoint, repo_id, commit, name).unlink(missing_ok=True)

    def listing(self, key: str) -> Path:
        """The file with the listing of the variant `key`; there is none for a variant with an index."""
        return self.root / "listings" / f"{key}.json"

    def remember_listing(self, key: str, data: bytes) -> None:
        """Keep the listing of a variant."""
        self._write(self.listing(key), data)

    def metadata(self, key: str) -> Path:
        """Where metadata.json of a variant is kept that was looked at and not fetched; it may not exist."""
        return self.root / "metadata" / f"{key}.json"

    def remember_metadata(self, key: str, data: bytes) -> None:
        """Keep metadata.json of a variant."""
        self._write(self.metadata(key), data)

    def variant(self, digest: str) -> Path:
        """The folder of the variant with the key `digest` (hex); it may not exist."""
        return self.root / "variants" / digest

    def variants(self) -> list[Path]:
        """The folders of all variants in the cache, by digest."""
        folder = self.root / "variants"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    @contextmanager
    def adding_variant(self, digest: str) -> Iterator[Path]:
        """An empty folder to fill; it becomes `variant(digest)` if the block ends well, else it is gone."""
        with self._cache_errors(), self._temporary_folder() as folder:
            content = folder / "variant"
            content.mkdir()
            yield content
            for path in (content, *(p for p in content.rglob("*") if p.is_dir())):
                _sync_folder(path)
            target = self.variant(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                content.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was faster
                    raise
            _sync_folder(target.parent)

    def clear(self) -> None:
        """Remove everything. Kernels loaded by running processes keep working."""
        with self._cache_errors():
            if self.root.exists():
                shutil.rmtree(self.root)

    def _repo(self, endpoint: str, repo_id: str) -> Path:
        return self.root / "hubs" / quote(endpoint, safe="") / repo_id

    def _publisher(self, endpoint: str, org: str) -> Path:
        return self.root / "publishers" / quote(endpoint, safe="") / f"{org}.json"

    def _write(self, path: Path, data: bytes) -> None:
        with self._cache_errors(), self._temporary_folder() as folder:
            temporary = folder / path.name
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)

    @contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        parent = self.root / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as name:
            yield Path(name)

    @contextmanager
    def _cache_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheError(
                f"cannot write the cache {self.root}: {error}; free some space, "
                "or set KERNELS_CACHE to another folder"
            ) from None


def read(path: Path) -> bytes | None:
    """The bytes of a file of the cache, None if there is none. Raises CacheError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"cannot read the cache: {error}; set KERNELS_CACHE to another folder") from None


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


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
