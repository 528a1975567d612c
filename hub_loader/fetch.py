"""Bring a version's index and a variant's files into the cache, asking the hub only for what is not there."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .config import Config
from .errors import DownloadError, OfflineError, VersionNotFoundError
from .hub import Hub
from .manifest import METADATA_NAME, Index, IndexedVariant, parse_index, parse_metadata
from .store import Store
from .verify import check_agreement

_PARALLEL_DOWNLOADS = 8
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION_BRANCH = re.compile(r"v(0|[1-9]\d*)", re.ASCII)

logger = logging.getLogger("hub_loader")


@dataclass(frozen=True)
class Request:
    """What a caller asked for: at most one of `version` and `revision`."""

    repo_id: str
    version: int | None
    revision: str | None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.repo_id} version {self.version}"
        return f"{self.repo_id} at {self.revision}" if self.revision else self.repo_id


def find_commit(config: Config, request: Request) -> str:
    """The commit a request means: one request to the hub, none for a commit hash or offline.

    A hub that fails is replaced by what it said last, with a warning.

    Raises:
        VersionNotFoundError: the repository has no such version or revision.
        OfflineError: offline, and this repository was never asked for.
        RepositoryNotFoundError, AuthenticationError, DownloadError, CacheError
    """
    if request.revision is not None and _COMMIT.fullmatch(request.revision):
        return request.revision
    name, commit = _find_ref(config, request)
    if request.version is None and request.revision is None:
        logger.info(
            "%s: %s is the newest version and stays so in this process; pass version=%s to choose it always",
            request.repo_id,
            name,
            name[1:],
        )
    return commit


def pick_ref(request: Request, refs: dict[str, str]) -> tuple[str, str]:
    """Name and commit of the ref a request means; the newest branch v<N> if it names none. Pure.

    Raises:
        VersionNotFoundError: there is none; the message lists those that are.
    """
    versions = sorted(int(match[1]) for name in refs if (match := _VERSION_BRANCH.fullmatch(name)))
    if request.version is not None:
        name: str | None = f"v{request.version}"
    elif request.revision is not None:
        name = request.revision
    else:
        name = f"v{versions[-1]}" if versions else None
    if name is None:
        raise VersionNotFoundError(
            f"{request.repo_id} has no version yet: pass revision= with one of its refs "
            f"({', '.join(sorted(refs)) or 'it has none'})"
        )
    if name not in refs:
        there = ", ".join(f"v{version}" for version in versions) or ", ".join(sorted(refs)) or "nothing"
        raise VersionNotFoundError(f"{request.repo_id} has no {name}: it has {there}")
    return name, refs[name]


def load_index(config: Config, request: Request, commit: str) -> Index:
    """The index at `commit`: from the cache, else one request.

    Raises:
        InvalidKernelError: there is no index.json, or it is malformed.
        OfflineError: offline, and it is not in the cache.
        VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, DownloadError, CacheError
    """
    store, repo_id = Store(config.cache), request.repo_id
    data = store.index(config.endpoint, repo_id, commit)
    if data is not None:
        return parse_index(data, origin=str(store.index_path(config.endpoint, repo_id, commit)))
    _require_online(config, request, f"its index at {commit[:12]}")
    data = Hub(config).index(repo_id, commit)
    index = parse_index(data, origin=f"index.json of {repo_id} at {commit[:12]}")
    store.remember_index(config.endpoint, repo_id, commit, data)
    return index


def fetch_variant(config: Config, request: Request, commit: str, name: str, variant: IndexedVariant) -> Path:
    """The folder of a variant in the cache, downloaded if it is not there: one request for each file.

    Raises:
        DownloadError, IntegrityError: a file came short or changed; the cache is as before.
        InvalidKernelError: metadata.json and index.json contradict each other.
        OfflineError: offline, and it is not in the cache.
        AuthenticationError, CacheError
    """
    store = Store(config.cache)
    folder = store.variant(variant.metadata.sha256)
    if folder.is_dir():
        return folder
    _require_online(config, request, f"its variant {name}")
    hub = Hub(config)
    with store.adding_variant(variant.metadata.sha256) as staging:

        def download(path: str) -> None:
            hub.download(
                request.repo_id, commit, f"build/{name}/{path}", variant.all_files[path], staging / path
            )

        for path in variant.files:
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="khub-download") as pool:
            tasks = [pool.submit(download, path) for path in variant.all_files]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        origin = f"build/{name}/{METADATA_NAME} of {request.repo_id} at {commit[:12]}"
        metadata = parse_metadata((staging / METADATA_NAME).read_bytes(), origin=origin)
        check_agreement(metadata, variant, origin)
    return folder


def _find_ref(config: Config, request: Request) -> tuple[str, str]:
    store, repo_id = Store(config.cache), request.repo_id
    remembered = store.refs(config.endpoint, repo_id) or {}
    try:
        _require_online(config, request, "it")
        refs = Hub(config).refs(repo_id)
    except (DownloadError, OfflineError) as error:
        try:
            found = pick_ref(request, remembered)
        except VersionNotFoundError:
            raise error from None  # the hub may have it by now, so "not found" would be a guess
        if isinstance(error, DownloadError):
            logger.warning("%s; using what it said last", error)
        return found
    if refs != remembered:
        store.remember_refs(config.endpoint, repo_id, refs)
    return pick_ref(request, refs)


def _require_online(config: Config, request: Request, what: str) -> None:
    if config.offline:
        version = "" if request.version is None else f" --version {request.version}"
        raise OfflineError(
            f"{request}: {what} is not in the cache {config.cache} for {config.endpoint}, and HF_HUB_OFFLINE "
            f"is set: unset it, or run `khub get {request.repo_id}{version}` while online"
        )
