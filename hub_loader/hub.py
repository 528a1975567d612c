"""The hub over HTTP: refs, the index and files of a kernel repository. Requests happen here and only here.

A client factory, proxies and certificates that a user has set for `huggingface_hub` apply (transport.py); the address
comes from the configuration of the call, so nothing reaches another host unless the hub itself redirects there
(which drops the token).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

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
from .manifest import INDEX_NAME, Entry
from .transport import http_errors, stream

_MAX_JSON_BYTES = 32 << 20
_MAX_TREE = 200_000  # entries of a repository
COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_URL = re.compile(r"/(?:api/)?kernels/([^/?]+/[^/?]+)/")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_repo_id(repo_id: str) -> None:
    """Raise UsageError unless `repo_id` is written org/name."""
    if not isinstance(repo_id, str) or not _REPO_ID.fullmatch(repo_id) or ".." in repo_id:
        raise UsageError(f"{repo_id!r} is not a repository: write org/name, e.g. kernels/paged-attention")


@dataclass(frozen=True)
class Refs:
    """Commit of each branch and tag by short name, of the repository that answered."""

    repo_id: str
    commits: Mapping[str, str]


@dataclass(frozen=True)
class IndexAnswer:
    """index.json at a revision: the repository and commit that answered (None: not said), None without index."""

    repo_id: str
    commit: str | None
    data: bytes | None


class Hub:
    """One hub, as a configuration names it."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def refs(self, repo_id: str) -> Refs:
        """The branches and tags of a repository; a branch wins over a tag of the same name.

        Raises:
            RepositoryNotFoundError, AuthenticationError, DownloadError, OfflineError
        """
        what = f"the refs of {repo_id}"
        with self._get(f"/api/kernels/{repo_id}/refs", what, repo_id) as response:
            data = self._parse(_body(response, what), what)
            try:
                refs = {
                    str(ref["name"]): str(ref["targetCommit"]) for ref in (*data["tags"], *data["branches"])
                }
            except (KeyError, TypeError):
                raise self._no_hub(what) from None
            return Refs(self._moved_to(response, repo_id), refs)

    def index(self, repo_id: str, revision: str) -> IndexAnswer:
        """The bytes of index.json at a branch, tag or commit, None where there is none; and which commit it is.

        Raises:
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, DownloadError, OfflineError
        """
        what = f"{INDEX_NAME} of {repo_id}"
        with self._get(
            _file_url(repo_id, revision, INDEX_NAME), what, repo_id, ("EntryNotFound",)
        ) as response:
            body = _body(response, what) if response.status_code == 200 else None
            commit = response.headers.get("x-repo-commit") or _first_hop(response, "x-repo-commit")
            if not commit or not COMMIT.fullmatch(commit):
                commit = None
            return IndexAnswer(self._moved_to(response, repo_id), commit, body)

    def tree(self, repo_id: str, commit: str) -> list[Mapping[str, Any]]:
        """Every entry of the repository at `commit`, all pages of it.

        Raises:
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, DownloadError, OfflineError
        """
        what, url = (
            f"the tree of {repo_id}",
            f"/api/kernels/{repo_id}/tree/{commit}?recursive=true&expand=false",
        )
        entries: list[Mapping[str, Any]] = []
        page = url
        while page:
            with self._get(page, what, repo_id) as response:
                found = self._parse(_body(response, what), what)
                # Only the cursor is taken from the link, so that a page is never asked of another host.
                cursor = parse_qs(urlsplit(response.links.get("next", {}).get("url", "")).query).get("cursor")
            if not isinstance(found, list) or len(entries) + len(found) > _MAX_TREE:
                raise self._no_hub(what)
            entries += found
            page = f"{url}&cursor={quote(cursor[0], safe='')}" if cursor and found else ""
        return entries

    def file(self, repo_id: str, commit: str, path: str, entry: Entry | None = None) -> bytes:
        """A small file's bytes, held against `entry` if there is one.

        Raises:
            DownloadError, IntegrityError: as `download`.
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, OfflineError
        """
        what = f"{path} of {repo_id}"
        size = None if entry is None else entry.size
        with self._get(_file_url(repo_id, commit, path), what, repo_id) as response:
            data = b"".join(_chunks(response, what, size, _MAX_JSON_BYTES if size is None else size))
        if entry is not None:
            digest = entry.new_hash()
            digest.update(data)
            _check(entry, digest.hexdigest(), what)
        return data

    def is_trusted_publisher(self, org: str) -> bool:
        """Whether the hub vouches for an organization; False for one it does not know.

        Raises:
            AuthenticationError, DownloadError, OfflineError
        """
        what = f"the publisher {org}"
        with self._get(
            f"/api/organizations/{quote(org)}/overview", what, org, ("", "RepoNotFound")
        ) as response:
            if response.status_code == 404:
                return False
            data = self._parse(_body(response, what), what)
            return isinstance(data, dict) and data.get("trustedKernelPublisher") is True

    def download(self, repo_id: str, commit: str, path: str, entry: Entry, destination: Path) -> None:
        """Write `path` of the repository to the new file `destination`, read-only and flushed to disk.

        Raises:
            DownloadError: fewer or more bytes than `entry` promises, or the hub failed.
            IntegrityError: as many bytes, but others.
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, OfflineError
        """
        what = f"{path} of {repo_id}"
        digest = entry.new_hash()
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
        _check(entry, digest.hexdigest(), what)

    def _parse(self, body: bytes, what: str) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self._no_hub(what) from None

    def _no_hub(self, what: str) -> DownloadError:
        return DownloadError(f"{what}: {self._config.endpoint} did not answer like a hub; check HF_ENDPOINT")

    def _moved_to(self, response: Any, repo_id: str) -> str:
        """The repository that answered: another than `repo_id` where the hub redirects a renamed one."""
        for hop in reversed([*response.history, response]):
            url = str(hop.url)
            if url.startswith(self._config.endpoint + "/"):
                match = _REPO_URL.match(url.removeprefix(self._config.endpoint))
                if match and _REPO_ID.fullmatch(match[1]):
                    return match[1]
        return repo_id

    @contextmanager
    def _get(self, url: str, what: str, repo_id: str, absent: tuple[str, ...] = ()) -> Iterator[Any]:
        """A successful streaming response (`transport.Response`, or httpx.Response).

        A 404 with one of the error codes in `absent` is an answer too.
        """
        endpoint = self._config.endpoint
        # A body in transit compressed would have another length than the manifest promises.
        headers = {"accept-encoding": "identity", "user-agent": self._config.user_agent}
        if self._config.token:
            headers["authorization"] = f"Bearer {self._config.token}"
        with ExitStack() as stack:
            try:
                response = stack.enter_context(stream(endpoint + url, headers))
            except http_errors() as error:
                raise DownloadError(
                    f"{what}: cannot reach {endpoint} ({error}): check the network and HF_ENDPOINT"
                ) from None
            except ConnectionError as error:
                if type(error).__name__ != "OfflineModeIsEnabled":  # of a package that may not be imported
                    raise
                raise OfflineError(
                    f"{what}: huggingface_hub was imported with HF_HUB_OFFLINE=1: unset it and start again"
                ) from None
            is_absent = response.status_code == 404 and response.headers.get("x-error-code", "") in absent
            if response.status_code != 200 and not is_absent:
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


def _file_url(repo_id: str, revision: str, path: str) -> str:
    return f"/kernels/{repo_id}/resolve/{quote(revision, safe='')}/{quote(path)}"


def _first_hop(response: Any, header: str) -> str | None:
    """A header of the hub's own answer, where that was a redirect to where the bytes are."""
    return next((hop.headers[header] for hop in response.history if header in hop.headers), None)


def _body(response: Any, what: str) -> bytes:
    return b"".join(_chunks(response, what, None, _MAX_JSON_BYTES))


def _check(entry: Entry, actual: str, what: str) -> None:
    if actual != entry.digest:
        raise IntegrityError(
            f"{what}: the hub sent other bytes than its manifest promises, expected {entry.algorithm} "
            f"{entry.digest}, got {actual}: ask the publisher to upload it again"
        )


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
    except http_errors() as error:
        broken = f" ({error})"
    if broken or size not in (None, received):
        expected = "the whole body" if size is None else f"{size} bytes"
        raise DownloadError(f"{what}: expected {expected}, got {received} bytes{broken}: try again")
