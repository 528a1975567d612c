"""Bring a variant's files, or its metadata alone, into the cache, asking the hub only for what is not there."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from .body import finish
from .cache_folder import read
from .config import Config
from .errors import CacheError
from .hub import Hub
from .listing import ListedVariant
from .manifest import METADATA_NAME, Metadata, parse_metadata
from .pin import Version, require_online
from .request import Request
from .store import Store
from .verify import check_agreement

_PARALLEL_DOWNLOADS = 8

logger = logging.getLogger("hub_loader")


def fetch_variant(config: Config, request: Request, version: Version, name: str) -> Path:
    """The folder of a variant in the cache, downloaded if it is not there: one request for each file.

    Raises:
        DownloadError: a file came short or the hub failed; the next attempt goes on from what came.
        IntegrityError: a file has other bytes than the hub promised; nothing is kept.
        InvalidKernelError: metadata.json contradicts the index or the tree.
        OfflineError: offline, and it is not in the cache.
        AuthenticationError, CacheError
    """
    store, variant = Store(config.cache), version.variants[name]
    folder = store.variant(variant.key)
    if store.use_variant(variant.key):
        return folder
    require_online(config, request, f"its variant {name}")
    if isinstance(variant, ListedVariant):
        store.remember_listing(variant.key, variant.to_json())
    with store.adding_variant(variant.key) as staging:
        if staging is None:  # another process has fetched it
            return folder
        _tidy(staging, variant.all_files)
        known = {METADATA_NAME: data} if (data := _cached_metadata(store, version, name)) is not None else {}
        for path in variant.all_files:
            store.make_folder((staging / path).parent)
        _download(Hub(config), version, name, known, staging)
        origin = f"build/{name}/{METADATA_NAME} of {version.repo_id} at {version.commit[:12]}"
        metadata = parse_metadata((staging / METADATA_NAME).read_bytes(), origin=origin)
        check_agreement(metadata, variant, origin)
    _keep_to_size(store, config)
    return folder


def _keep_to_size(store: Store, config: Config) -> None:
    """Remove what was used longest ago if the user has set a size; that this fails is no reason not to load."""
    if config.max_cache is None:
        return
    from .gc import collect  # rarely needed

    try:
        removed = collect(store, config.max_cache).removed
    except CacheError as error:
        logger.warning("%s", error)
        return
    for variant in removed:
        logger.info(
            "%s was removed from the cache, which is to have %d bytes", variant.path, config.max_cache
        )


def fetch_metadata(config: Config, request: Request, version: Version, name: str) -> Metadata:
    """A variant's metadata.json, parsed: from the cache, else one request.

    Raises:
        DownloadError, IntegrityError: it came short or changed.
        InvalidKernelError: it is malformed.
        OfflineError, AuthenticationError, CacheError
    """
    origin = f"build/{name}/{METADATA_NAME} of {version.repo_id} at {version.commit[:12]}"
    return parse_metadata(read_metadata(config, request, version, name), origin=origin)


def read_metadata(config: Config, request: Request, version: Version, name: str) -> bytes:
    """The proven bytes of a variant's metadata.json. Raises as `fetch_metadata`, if they are not JSON aside."""
    store, variant = Store(config.cache), version.variants[name]
    data = _cached_metadata(store, version, name)
    if data is not None:
        return data
    require_online(config, request, f"{METADATA_NAME} of its variant {name}")
    with store.lock(f"metadata/{variant.key}"):
        data = _cached_metadata(store, version, name)
        if data is None:
            path = f"build/{name}/{METADATA_NAME}"
            data = Hub(config).file(version.repo_id, version.commit, path, variant.metadata)
            store.remember_metadata(variant.key, data)
    return data


def _cached_metadata(store: Store, version: Version, name: str) -> bytes | None:
    """The bytes if the cache has them, proven; what is damaged counts as missing here."""
    variant = version.variants[name]
    for path in (store.metadata(variant.key), store.variant(variant.key) / METADATA_NAME):
        data = read(path)
        if data is not None:
            digest = variant.metadata.new_hash()
            digest.update(data)
            if digest.hexdigest() == variant.metadata.digest:
                return data
    return None


def _tidy(staging: Path, files: Collection[str]) -> None:
    """Remove from an interrupted attempt what would be an extra file in the variant."""
    for path in sorted(staging.rglob("*"), reverse=True):  # what is in a folder before the folder
        relative = path.relative_to(staging).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(file.startswith(f"{relative}/") for file in files):
                path.rmdir()
        elif relative not in files or path.is_symlink():
            path.unlink()


def _download(hub: Hub, version: Version, name: str, known: Mapping[str, bytes], staging: Path) -> None:
    """Fill `staging`, which has the folders, with the variant's files, several at a time; but for those `known`."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and a warm process fetches nothing

    files = version.variants[name].all_files

    def download(path: str) -> None:
        source = f"build/{name}/{path}"
        hub.download(version.repo_id, version.commit, source, files[path], staging / path)

    for path, data in known.items():
        (staging / path).unlink(missing_ok=True)
        with (staging / path).open("xb") as file:
            file.write(data)
            finish(file)
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="khub-download") as pool:
        tasks = [pool.submit(download, path) for path in files if path not in known]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
