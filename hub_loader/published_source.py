"""The source that a kernel's repository publishes beside its variants, in the cache, each file proven.

A repository publishes its source when build.toml lies at its root at a commit. What builds depend on is fetched, as
`source_files` has it. A commit pins the git hash (SHA-1; SHA-256 for LFS) of every file; a file with
another one is refused, so what is compiled is what the hub lists under that commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .cache_folder import scratch_folder
from .config import Config
from .errors import (
    AuthenticationError,
    CacheError,
    DownloadError,
    IntegrityError,
    NoMatchingVariantError,
    OfflineError,
    RepositoryNotFoundError,
)
from .manifest import INDEX_NAME, check_path
from .source_files import BUILD_FILE, is_source

# What `khub publish` writes about the variants.
ABOUT_VARIANTS = (INDEX_NAME, f"{INDEX_NAME}.dsse", "provenance.intoto.json")


def published_source(config: Config, repo_id: str, commit: str) -> Path:
    """The folder of the source that `repo_id` publishes at `commit`; fetched once, no request after that.

    Raises:
        NoMatchingVariantError: it publishes no source.
        IntegrityError: a file is not the one that the commit lists.
        InvalidKernelError: the commit lists an unsafe path.
        OfflineError: offline, and it is not in the cache.
        RepositoryNotFoundError, AuthenticationError, DownloadError, CacheError
    """
    target = config.cache / "sources" / quote(config.endpoint, safe="") / repo_id / commit
    if target.is_dir():
        return target
    if config.offline:
        raise OfflineError(
            f"{repo_id}: its source at {commit[:12]} is not in the cache {config.cache}, and HF_HUB_OFFLINE is "
            "set: unset it, or build once while online"
        )
    with scratch_folder(config.cache, "source-") as staging:
        source = staging / "source"
        with _hub_errors(f"the source of {repo_id}"):
            _fetch(config, repo_id, commit, staging / "hub", source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError as error:
            if not target.is_dir():  # otherwise another process was faster
                raise CacheError(f"cannot write the cache {target.parent}: {error}") from None
    return target


def source_paths(paths: Iterable[str]) -> list[str]:
    """Those of a repository's paths that are source; none where there is no build.toml at the root. Pure.

    Raises:
        InvalidKernelError: one of them is unsafe.
    """
    listed = [path for path in paths if is_source(path) and path not in ABOUT_VARIANTS]
    for path in listed:
        check_path(path)
    return sorted(listed) if BUILD_FILE in listed else []


def _fetch(config: Config, repo_id: str, commit: str, downloads: Path, source: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(config.endpoint, token=config.token or False, library_name="kernel-hub")
    tree = api.list_repo_tree(repo_id, repo_type="kernel", revision=commit, recursive=True)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    paths = source_paths(files)
    if not paths:
        raise NoMatchingVariantError(
            f"{repo_id} publishes no source at {commit[:12]}: it has no {BUILD_FILE}, so nothing can be built"
        )
    for path in paths:
        fetched = api.hf_hub_download(
            repo_id, path, repo_type="kernel", revision=commit, cache_dir=downloads, force_download=True
        )
        data = Path(fetched).read_bytes()
        if _git_hash(data, files[path]) != _listed_hash(files[path]):
            raise IntegrityError(
                f"{path} of {repo_id}: the hub sent other bytes than its commit {commit[:12]} lists: "
                "ask the publisher to upload it again"
            )
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)


def _listed_hash(file: Any) -> str:
    return str(file.lfs.sha256 if file.lfs is not None else file.blob_id)


def _git_hash(data: bytes, file: Any) -> str:
    if file.lfs is not None:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from huggingface_hub.errors import RepositoryNotFoundError as NotOnHubError

    # The base of huggingface_hub's own errors, whichever httpx it uses.
    http_error: type[Exception] = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
    try:
        yield
    except NotOnHubError:
        raise RepositoryNotFoundError(
            f"{what}: the hub has no such repository, or HF_TOKEN may not see it"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AuthenticationError(f"{what}: the hub refuses access ({status}): check HF_TOKEN") from None
        raise DownloadError(
            f"{what}: the hub answered {status}: try again later, or check HF_ENDPOINT"
        ) from None
    except (http_error, EntryNotFoundError, ConnectionError) as error:
        raise DownloadError(f"{what}: {error}: check the network and HF_ENDPOINT") from None
    except OSError as error:
        raise CacheError(f"{what} cannot be written to the cache: {error}; free some space") from None
