"""The rules of a TUF client, which are python-tuf's, over our requests. Imports `tuf`.

All that is needed for one organization comes in one answer, the bundle; a server without bundles, such as a plain
mirror of the metadata, is asked for file after file. Either way it is python-tuf that decides what is believed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuf.api import exceptions
from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from ..body import chunks
from ..config import Config
from ..errors import DownloadError, SignatureError
from ..hub import COMMIT, Hub
from ..manifest import sha256_hex
from .tuf_names import BUNDLE_URL, METADATA_URL, Target, parse_target, role_of
from .tuf_record import Listed, Namespace

MAX_BUNDLE_BYTES = 16 << 20
_MAX_FILE_BYTES = 8 << 20  # python-tuf stops reading earlier, at the length that metadata promises


class Fetcher(FetcherInterface):
    """Metadata out of a bundle, and by requests through the hub's session where there is none."""

    def __init__(self, config: Config, files: Mapping[str, bytes] | None) -> None:
        self._config = config
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix(self._config.endpoint)
        name = path.rpartition("/")[2]
        if self._files is not None and path == METADATA_URL + name:
            if name in self._files:
                return iter([self._files[name]])
            if name.endswith(".root.json"):  # the bundle has every root that there is
                raise DownloadHTTPError(f"no {name}", 404)
        return self._request(path)

    def _request(self, path: str) -> Iterator[bytes]:
        what = f"TUF metadata {path}"
        with Hub(self._config).stream(path, what) as response:
            if response.status_code != 200:
                raise DownloadHTTPError(f"{what}: HTTP {response.status_code}", response.status_code)
            yield from chunks(response, what, None, _MAX_FILE_BYTES)


def updater(
    config: Config, base: str, folder: Path, root: bytes, files: Mapping[str, bytes] | None
) -> Updater:
    """python-tuf's client of the metadata at `base`, which trusts `root` and keeps its state in `folder`.

    Raises:
        RepositoryError: `root` is no root that is signed as it says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return Updater(str(folder), base, fetcher=Fetcher(config, files), config=UpdaterConfig(), bootstrap=root)


def fetch_namespace(config: Config, folder: Path, root: bytes, org: str) -> Namespace:
    """What the hub's metadata says of `org` now. `folder` holds what was believed before.

    A `Namespace` that is `refused` is what a properly signed revocation leaves of an organization.

    Raises:
        SignatureError: the metadata breaks one of TUF's rules, or there is none; the message says which.
        DownloadError: the hub cannot be reached, or does not answer with metadata.
    """
    trusted = _root_version(root)
    files = _bundle(config, org, trusted)
    try:
        client = updater(config, config.endpoint + METADATA_URL, folder, root, files)
        client.refresh()
    except (RepositoryError, exceptions.DownloadError) as error:
        raise refusal(config, error) from None
    if f"{role_of(org)}.json" not in _signed(folder, Snapshot.type).signed.meta:
        return _namespace(folder, root, org)  # nothing was published yet
    try:
        client.get_targetinfo(str(Target(org, "-", 1)))  # loads the organization's role
    except UnsignedMetadataError:
        reason = f"no key that the hub's TUF metadata allows to publish for {org!r} has signed what it has"
        return _namespace(folder, root, org, refused=reason)
    except (RepositoryError, exceptions.DownloadError) as error:
        raise refusal(config, error) from None
    return _namespace(folder, root, org)


def fetch_role(config: Config, folder: Path, root: bytes, org: str) -> tuple[Targets, int, Targets | None]:
    """What publishers build on: who may sign for `org`, the version it is at (0: none), and what it is.

    The last is None where nothing was published, or no key that may sign for it any more has signed it.
    Raises as `fetch_namespace`.
    """
    found = fetch_namespace(config, folder, root, org)
    role = role_of(org)
    meta = _signed(folder, Snapshot.type).signed.meta.get(f"{role}.json")
    top: Targets = _signed(folder, Targets.type).signed
    if meta is None:
        return top, 0, None
    return top, meta.version, _signed(folder, role).signed if found.key_ids else None


def check_root(data: bytes, origin: str) -> int:
    """The version of a root that is signed as it says itself. Raises SignatureError."""
    try:
        metadata = Metadata[Root].from_bytes(data)
        if not isinstance(metadata.signed, Root):
            raise SignatureError(f"{origin} is TUF metadata of another role than root")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise SignatureError(f"{origin} is no root of a TUF repository: {error}") from None
    return metadata.signed.version


def refusal(config: Config, error: Exception) -> SignatureError | DownloadError:
    """The error of ours for one of python-tuf's."""
    hub = config.endpoint
    if isinstance(error, DownloadHTTPError):
        if error.status_code in (404, 410):
            return SignatureError(
                f"{hub} has a root given here and does not show the TUF metadata that follows: {error}"
            )
        return DownloadError(f"{hub}: {error}: try again later")
    if isinstance(error, exceptions.DownloadLengthMismatchError):
        return SignatureError(f"{hub} sends more TUF metadata than is signed: {error}")
    if isinstance(error, exceptions.DownloadError):
        return DownloadError(f"{hub}: {error}: check the network and HF_ENDPOINT")
    if isinstance(error, ExpiredMetadataError):
        return SignatureError(
            f"{hub}: {error}: the hub is not looked after, or somebody shows an old state of it; check the clock here"
        )
    return SignatureError(f"{hub} shows TUF metadata that breaks its rules, {type(error).__name__}: {error}")


def _root_version(root: bytes) -> int:
    return check_root(root, "the root given for this hub")


def _bundle(config: Config, org: str, since: int) -> Mapping[str, bytes] | None:
    what = f"TUF metadata of {org}"
    url = f"{BUNDLE_URL}?namespace={org}&root={since}"
    with Hub(config).stream(url, what) as response:
        if response.status_code != 200:
            return None
        data = b"".join(chunks(response, what, None, MAX_BUNDLE_BYTES))
    try:
        files: Any = json.loads(data)["files"]
        return {str(name): text.encode() for name, text in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DownloadError(
            f"{what}: {config.endpoint} did not answer like a hub; check HF_ENDPOINT"
        ) from None


def _namespace(folder: Path, root: bytes, org: str, refused: str | None = None) -> Namespace:
    """What the verified files in `folder` say of an organization."""
    role = role_of(org)
    top, snapshot = _signed(folder, Targets.type).signed, _signed(folder, Snapshot.type).signed
    expires = min(
        top.expires,
        snapshot.expires,
        *(_signed(folder, r).signed.expires for r in (Root.type, Timestamp.type)),
    )
    found = Namespace(sha256_hex(root), time.time(), expires.timestamp(), refused=refused)
    meta = snapshot.meta.get(f"{role}.json")
    delegated = ((top.delegations.roles if top.delegations else None) or {}).get(role)
    if delegated is None and meta is not None:  # it was, or there would be no list
        found = replace(
            found, refused=f"no key may publish for {org!r} any more, says the hub's TUF metadata"
        )
    if delegated is None or meta is None or refused is not None:
        return found
    metadata = _signed(folder, role)
    result = top.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not result or metadata.signed.version != meta.version:  # the walk found another role in its place
        raise SignatureError(f"{role} of the hub's TUF metadata is not what its delegations lead to")
    listed = {
        path: _listed(file)
        for path, file in metadata.signed.targets.items()
        if delegated.is_delegated_path(path) and parse_target(path) is not None
    }
    until = min(expires, metadata.signed.expires).timestamp()
    return replace(found, expires=until, key_ids=frozenset(result.signed), targets=listed)


def _signed(folder: Path, role: str) -> Metadata[Any]:
    return Metadata[Any].from_bytes((folder / f"{role}.json").read_bytes())


def _listed(file: TargetFile) -> Listed:
    custom = file.custom if isinstance(file.custom, dict) else {}
    commit, yanked = custom.get("commit"), custom.get("yanked")
    if not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
        commit = None
    return Listed(file.hashes.get("sha256", ""), file.length, commit, None if yanked is None else str(yanked))
