"""The cache on disk: variants by content, and what each hub said last.

    variants/<sha256 of metadata.json>/   a variant's files, read-only; complete or absent, never in between
    hubs/<endpoint>/<org>/<name>/refs.json          commit of each branch and tag, as last seen
    hubs/<endpoint>/<org>/<name>/<commit>/index.json
    tmp/                                  downloads under way; renamed into place when whole

A commit never changes, so an index is asked for once. Everything appears by one atomic rename; of two
processes that fetch the same variant the first to finish wins and the other uses its work.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from .errors import CacheError
from .manifest import INDEX_NAME


class Store:
    """The cache under one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def refs(self, endpoint: str, repo_id: str) -> dict[str, str] | None:
        """The refs last remembered, None if there are none.

        Raises:
            CacheError: the file is damaged or unreadable.
        """
        path = self._repo(endpoint, repo_id) / "refs.json"
        data = _read(path)
        if data is None:
            return None
        try:
            return {str(name): str(commit) for name, commit in json.loads(data).items()}
        except (ValueError, AttributeError):
            raise CacheError(f"{path} is damaged: delete it, it will be fetched again") from None

    def remember_refs(self, endpoint: str, repo_id: str, refs: dict[str, str]) -> None:
        """Keep `refs` for when the hub cannot be asked."""
        data = (json.dumps(refs, sort_keys=True, indent=2) + "\n").encode()
        self._write(self._repo(endpoint, repo_id) / "refs.json", data)

    def index_path(self, endpoint: str, repo_id: str, commit: str) -> Path:
        """Where the index of a commit is kept."""
        return self._repo(endpoint, repo_id) / commit / INDEX_NAME

    def index(self, endpoint: str, repo_id: str, commit: str) -> bytes | None:
        """The bytes of index.json remembered for a commit, None if there are none."""
        return _read(self.index_path(endpoint, repo_id, commit))

    def remember_index(self, endpoint: str, repo_id: str, commit: str, data: bytes) -> None:
        """Keep the index of a commit."""
        self._write(self.index_path(endpoint, repo_id, commit), data)

    def variant(self, digest: str) -> Path:
        """The folder of the variant whose metadata.json has SHA-256 `digest` (hex); it may not exist."""
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


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"cannot read the cache: {error}; set KERNELS_CACHE to another folder") from None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
