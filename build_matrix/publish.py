"""Upload a built package with the stock Hub client: one commit, of what changed, on the version's branch.

Publishing the same package again does nothing. An interrupted one left nothing behind: readers see the
commit before or the whole one after, and a second publisher at the same time is refused, not mixed in.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_loader.config import load_config
from hub_loader.errors import AuthenticationError, CacheError, DownloadError, InvalidKernelError
from hub_loader.manifest import (
    INDEX_NAME,
    METADATA_NAME,
    Index,
    check_path,
    parse_index,
    parse_metadata,
    sha256_hex,
)
from hub_loader.pin import remember_published
from hub_loader.published_source import ABOUT_VARIANTS, source_paths
from hub_loader.source_files import source_digest, source_files
from hub_loader.trust.judge import prove
from hub_loader.trust.tuf_client import root_of

from .build_toml import read_build_file
from .card import CARD_NAME, card
from .envelope import ENVELOPE_NAME, envelope_to_publish, read_envelope
from .statement import STATEMENT_NAME

if TYPE_CHECKING:
    from hub_loader.trust.keys import PrivateKey

    from .targets import Publisher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """Where a package went, and how many files were written and removed there; 0 and 0: it was there.

    `signed_by` is the id of the key that signed it, None for a version without a signature; `targets` the version of
    the organization's TUF targets that list it since, None where they did already or the hub has none.
    """

    repo_id: str
    branch: str
    commit: str
    variants: tuple[str, ...]
    written: int
    removed: int
    signed_by: str | None = None
    targets: int | None = None


def publish(
    package: Path,
    repo_id: str,
    *,
    message: str | None = None,
    source: Path | None = None,
    token: str | None = None,
    key: PrivateKey | None = None,
) -> Published:
    """Upload `package` (a folder with `index.json` and `build/`) to `repo_id`, branch `v<version>`.

    With `source`, the kernel's folder, its sources go to the root of the repository, where `get_kernel` finds them
    for machines that no variant fits; without it, none stay there that belong to other variants.

    The repository and the branch are created when they are not there, the card is generated. `HF_ENDPOINT`
    and `HF_TOKEN` say where and as whom, as for every Hub client; `token` comes before `HF_TOKEN`. With a `key` the
    version is signed, in the same commit, unless the same key has signed the same index.json there already; without
    one, the signature that `khub sign` left in the package is uploaded.

    Raises:
        InvalidKernelError: `package` is not a built package, or was changed since; `source` is not what it was
            built from.
        SignatureError: the signature in `package` is for another index.json or repository.
        AuthenticationError: no token, or one without the right to write there.
        DownloadError: the hub cannot be reached, answers an error, or changed meanwhile.
    """
    path = package / INDEX_NAME
    if not path.is_file():
        raise InvalidKernelError(
            f"{package} holds no {INDEX_NAME}: build it first with khub build --out {package}"
        )
    index = parse_index(path.read_bytes(), origin=str(path))
    files = read_package(package, index)
    files[CARD_NAME] = card(package, index, repo_id).encode()
    if source is not None:
        files |= read_sources(source, package, index)
    lister = publisher_for(repo_id, key)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(library_name="kernel-hub", token=token)
    branch = f"v{index.version}"
    with hub_errors(repo_id, "publishing"):
        api.create_repo(repo_id, repo_type="kernel", exist_ok=True)
        api.create_branch(repo_id, repo_type="kernel", branch=branch, exist_ok=True)
        branches = api.list_repo_refs(repo_id, repo_type="kernel").branches
        head = next(ref.target_commit for ref in branches if ref.name == branch)
        tree = api.list_repo_tree(repo_id, repo_type="kernel", revision=head, recursive=True)
        there = {file.path: file for file in tree if isinstance(file, RepoFile)}
        signed = envelope_to_publish(
            package, repo_id, files, key, lambda: read_envelope(api, repo_id, head, there)
        )
        if signed is not None:
            files[ENVELOPE_NAME] = signed
        changed = [path for path, data in files.items() if not _equal(there.get(path), data)]
        # A variant that is no longer built must not linger beside the new ones, nor the source of others.
        theirs = (*(path for path in there if path.startswith("build/")), *source_paths(there))
        stale = [path for path in theirs if path not in files]
        if ENVELOPE_NAME in there and ENVELOPE_NAME not in files and INDEX_NAME in changed:
            stale.append(ENVELOPE_NAME)  # it signs another index.json
        if changed or stale:
            head = api.create_commit(
                repo_id,
                repo_type="kernel",
                revision=branch,
                parent_commit=head,
                operations=[
                    *(CommitOperationDelete(path) for path in stale),
                    *(CommitOperationAdd(path, files[path]) for path in changed),
                ],
                commit_message=message or f"Publish {index.name} {branch}",
            ).oid
    try:
        remember_published(repo_id, branch, head)
    except CacheError as error:  # a machine that only publishes may have no cache
        logger.warning("%s; get_kernel may load here for an hour what was published before", error)
    listed = None
    if (
        lister is not None
    ):  # after the commit: until then readers with the hub's root load what was listed before
        listed = lister.publish(repo_id, index.version, head, files[INDEX_NAME])
    signer = None if signed is None else prove(signed, origin=ENVELOPE_NAME).key_id
    return Published(repo_id, branch, head, tuple(index.variants), len(changed), len(stale), signer, listed)


def publisher_for(repo_id: str, key: PrivateKey | None) -> Publisher | None:
    """Who lists versions in the hub's TUF targets; None without a key, or where the hub has none.

    Nothing was uploaded yet when this finds that the key may not.

    Raises:
        AuthenticationError, SignatureError, DownloadError: as `Publisher.check`.
        UsageError: the hub has TUF targets, and its root was not given here.
    """
    config = load_config()
    if key is None:
        if root_of(config.endpoint) is not None:
            logger.warning(
                "%s is published without --sign-key: whoever was given the root of %s refuses it",
                repo_id,
                config.endpoint,
            )
        return None
    from .targets import publisher

    found = publisher(config, repo_id.partition("/")[0], key)
    if found is not None:
        found.check()
    return found


def read_package(package: Path, index: Index) -> dict[str, bytes]:
    """Every file that `index` lists, the index and the statement, by path in the repository.

    Raises:
        InvalidKernelError: a file is missing or is not the one that was built.
    """
    files = {INDEX_NAME: (package / INDEX_NAME).read_bytes()}
    if (package / STATEMENT_NAME).is_file():  # packages of other builders have none
        files[STATEMENT_NAME] = (package / STATEMENT_NAME).read_bytes()
    for name, variant in index.variants.items():
        for inside, entry in variant.all_files.items():
            path = package / "build" / name / inside
            data = path.read_bytes() if path.is_file() else b""
            if sha256_hex(data) != entry.sha256:
                raise InvalidKernelError(f"{path} is not what {INDEX_NAME} lists: build the package again")
            files[f"build/{name}/{inside}"] = data
    return files


def read_sources(folder: Path, package: Path, index: Index) -> dict[str, bytes]:
    """The sources in `folder`, by path in the repository.

    Raises:
        InvalidKernelError: no variant of the package was built from them as they are now; an unsafe path.
    """
    read_build_file(folder)
    origins = [_origin(package / "build" / name / METADATA_NAME) for name in index.variants]
    if source_digest(folder) not in [origin.get("sources", {}).get("sha256") for origin in origins]:
        raise InvalidKernelError(
            f"{folder} is not what {package} was built from: build it again, or leave --source out"
        )
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in source_files(folder)}
    for path in files:
        check_path(path)
        if path in ABOUT_VARIANTS:
            raise InvalidKernelError(f"{folder / path} is called like what describes the package: rename it")
    return files


def _origin(path: Path) -> Mapping[str, Any]:
    return parse_metadata(path.read_bytes(), origin=str(path)).provenance or {}


@contextmanager
def hub_errors(repo_id: str, doing: str) -> Iterator[None]:
    """Let what the Hub client raises inside be ours.

    Raises:
        AuthenticationError: no token, or one without the right to write there.
        DownloadError: the hub answers an error, or changed meanwhile.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise AuthenticationError("no token to write with: set HF_TOKEN or run `hf auth login`") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            said = _sentence(error).rstrip(".")
            cure = "" if "HF_TOKEN" in said else "; set HF_TOKEN to a token that may write there"
            raise AuthenticationError(f"{repo_id}: {said}{cure}") from None
        raise DownloadError(f"{doing} {repo_id} failed with HTTP {status}: {_sentence(error)}") from None


def _equal(file: Any, data: bytes) -> bool:
    """Whether the hub's `file` (a RepoFile or None) holds `data`: git's hash of it, or SHA-256 in LFS."""
    if file is None or file.size != len(data):
        return False
    if file.lfs is not None:
        return bool(file.lfs.sha256 == sha256_hex(data))
    return bool(file.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


def _sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
