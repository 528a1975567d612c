"""The hub over HTTP: refs, the index and files of a kernel repository. Requests happen here and only here.

Requests go through `huggingface_hub`'s session, so a client factory, proxies and certificates a user has set
for it apply; the address comes from the configuration of the call, so nothing reaches another host unless the
hub itself redirects there (which drops the token).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .config import Config
from .errors import (
    AuthenticationError,
    DownloadError,
    IntegrityError,
    InvalidKernelError,
    KernelHubError,
    OfflineError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from .manifest import INDEX_NAME, FileEntry

_TIMEOUTS_S = (10.0, 60.0, 60.0, 60.0)  # to connect, between bytes read, between bytes sent, for a connection
_MAX_JSON_BYTES = 32 << 20
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_repo_id(repo_id: str) -> None:
    """Raise UsageError unless `repo_id` is written org/name."""
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id:
        raise UsageError(f"{repo_id!r} is not a repository: write org/name, e.g. kernels/paged-attention")


class Hub:
    """One hub, as a configuration names it."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def refs(self, repo_id: str) -> dict[str, str]:
        """Commit of each branch and tag by short name; a branch wins over a tag of the same name.

        Raises:
            RepositoryNotFoundError, AuthenticationError, DownloadError, OfflineError
        """
        what = f"the refs of {repo_id}"
        body = self._json(f"/api/kernels/{repo_id}/refs", what, repo_id)
        try:
            data = json.loads(body)
            return {str(ref["name"]): str(ref["targetCommit"]) for ref in (*data["tags"], *data["branches"])}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DownloadError(
                f"{what}: {self._config.endpoint} did not answer like a hub; check HF_ENDPOINT"
            ) from None

    def index(self, repo_id: str, commit: str) -> bytes:
        """The bytes of index.json at `commit`.

        Raises:
            InvalidKernelError: the repository has no index.json there.
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, DownloadError, OfflineError
        """
        return self._json(_file_url(repo_id, commit, INDEX_NAME), f"{INDEX_NAME} of {repo_id}", repo_id)

    def download(self, repo_id: str, commit: str, path: str, entry: FileEntry, destination: Path) -> None:
        """Write `path` of the repository to the new file `destination`, read-only and flushed to disk.

        Raises:
            DownloadError: fewer or more bytes than `entry` promises, or the hub failed.
            IntegrityError: as many bytes, but others.
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, OfflineError
        """
        what = f"{path} of {repo_id}"
        digest = hashlib.sha256()
        with (
            self._get(_file_url(repo_id, commit, path), what, repo_id) as response,
            destination.open("xb") as file,
        ):
            for chunk in _chunks(response, what, entry.size, entry.size):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        if digest.hexdigest() != entry.sha256:
            raise IntegrityError(
                f"{what}: the hub sent other bytes than its manifest promises, expected sha256 "
                f"{entry.sha256}, got {digest.hexdigest()}: ask the publisher to upload it again"
            )

    def _json(self, url: str, what: str, repo_id: str) -> bytes:
        with self._get(url, what, repo_id) as response:
            return b"".join(_chunks(response, what, None, _MAX_JSON_BYTES))

    @contextmanager
    def _get(self, url: str, what: str, repo_id: str) -> Iterator[Any]:
        """A successful streaming response (httpx.Response of whichever httpx huggingface_hub uses)."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import OfflineModeIsEnabled

        endpoint = self._config.endpoint
        # A body in transit compressed would have another length than the manifest promises.
        headers = {"accept-encoding": "identity", "user-agent": "kernel-hub"}
        if self._config.token:
            headers["authorization"] = f"Bearer {self._config.token}"
        request = get_session().stream("GET", endpoint + url, headers=headers, timeout=_TIMEOUTS_S)
        with ExitStack() as stack:
            try:
                response = stack.enter_context(request)
            except OfflineModeIsEnabled:
                raise OfflineError(
                    f"{what}: huggingface_hub was imported with HF_HUB_OFFLINE=1: unset it and start again"
                ) from None
            except _http_error() as error:
                raise DownloadError(
                    f"{what}: cannot reach {endpoint} ({error}): check the network and HF_ENDPOINT"
                ) from None
            if response.status_code != 200:
                raise self._refusal(response, what, repo_id)
            yield response

    def _refusal(self, response: Any, what: str, repo_id: str) -> KernelHubError:
        endpoint, status = self._config.endpoint, response.status_code
        code = response.headers.get("x-error-code")
        if code == "RepoNotFound":
            return RepositoryNotFoundError(
                f"{endpoint} has no kernel repository {repo_id!r}, or the token may not see it: "
                "check the spelling and HF_TOKEN"
            )
        if code == "RevisionNotFound":
            return VersionNotFoundError(
                f"{what}: the hub does not know this revision: check it with `khub explain {repo_id}`"
            )
        if code == "EntryNotFound":
            return InvalidKernelError(
                f"{repo_id} has no {what.split(' of ')[0]} at this revision: "
                "ask the publisher to upload it with `khub publish`"
            )
        if code == "GatedRepo" or status in (401, 403):
            return AuthenticationError(
                f"{what}: {endpoint} refuses access ({status}): set HF_TOKEN to a token that may read it"
            )
        return DownloadError(f"{what}: {endpoint} answered {status}: try again later, or check HF_ENDPOINT")


def _file_url(repo_id: str, commit: str, path: str) -> str:
    return f"/kernels/{repo_id}/resolve/{commit}/{quote(path)}"


def _chunks(response: Any, what: str, size: int | None, limit: int) -> Iterator[bytes]:
    """The body piece by piece; DownloadError unless it has `size` bytes, or when it exceeds `limit`."""
    received, broken = 0, ""
    try:
        for chunk in response.iter_bytes():
            received += len(chunk)
            if received > limit:
                raise DownloadError(
                    f"{what}: expected at most {limit} bytes, the hub sends more: check HF_ENDPOINT"
                )
            yield chunk
    except _http_error() as error:
        broken = f" ({error})"
    if broken or size not in (None, received):
        expected = "the whole body" if size is None else f"{size} bytes"
        raise DownloadError(f"{what}: expected {expected}, got {received} bytes{broken}: try again")


def _http_error() -> type[Exception]:
    """The base of the session's errors: HTTPError of httpx or of httpx2, by version of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
