"""Bring a variant's files, or its metadata alone, into the cache, asking the hub only for what is not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .config import Config
from .hub import Hub
from .listing import ListedVariant
from .manifest import METADATA_NAME, Metadata, parse_metadata
from .pin import Version, require_online
from .request import Request
from .store import Store, read
from .verify import check_agreement

_PARALLEL_DOWNLOADS = 8


def fetch_variant(config: Config, request: Request, version: Version, name: str) -> Path:
    """The folder of a variant in the cache, downloaded if it is not there: one request for each file.

    Raises:
        DownloadError, IntegrityError: a file came short or changed; the cache is as before.
        InvalidKernelError: metadata.json contradicts the index or the tree.
        OfflineError: offline, and it is not in the cache.
        AuthenticationError, CacheError
    """
    store, variant = Store(config.cache), version.variants[name]
    folder = store.variant(variant.key)
    if folder.is_dir():
        return folder
    require_online(config, request, f"its variant {name}")
    if isinstance(variant, ListedVariant):
        store.remember_listing(variant.key, variant.to_json())
    known = {METADATA_NAME: data} if (data := _cached_metadata(store, version, name)) is not None else {}
    with store.adding_variant(variant.key) as staging:
        _download(Hub(config), version, name, known, staging)
        origin = f"build/{name}/{METADATA_NAME} of {version.repo_id} at {version.commit[:12]}"
        metadata = parse_metadata((staging / METADATA_NAME).read_bytes(), origin=origin)
        check_agreement(metadata, variant, origin)
    return folder


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
    if data is None:
        require_online(config, request, f"{METADATA_NAME} of its variant {name}")
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


def _download(hub: Hub, version: Version, name: str, known: Mapping[str, bytes], staging: Path) -> None:
    """Fill `staging` with the variant's files, several at a time; `known` need not be asked for."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and a warm process fetches nothing

    files = version.variants[name].all_files

    def download(path: str) -> None:
        source = f"build/{name}/{path}"
        hub.download(version.repo_id, version.commit, source, files[path], staging / path)

    for path in files:
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
    for path, data in known.items():
        with (staging / path).open("xb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="khub-download") as pool:
        tasks = [pool.submit(download, path) for path in files if path not in known]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
