"""The hub over HTTP: refs, the index and files of a kernel repository. Requests happen here and only here.

The address comes from the configuration of the call, so nothing reaches another host unless the hub itself
redirects there (which drops the token).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, urlsplit

from .background import InBackground
from .body import (
    MAX_JSON_BYTES,
    TooLongError,
    body,
    check,
    chunks,
    continues,
    finish,
    is_whole,
    open_partial,
    read_into,
)
from .config import Config
from .errors import (
    AuthenticationError,
    DownloadError,
    InvalidKernelError,
    KernelHubError,
    OfflineError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from .manifest import INDEX_NAME, Entry
from .record import Record
from .session import http_errors, offline_errors, session
from .trust.dsse import ENVELOPE_NAME, MAX_ENVELOPE_BYTES

_TIMEOUTS_S = (10.0, 60.0, 60.0, 60.0)  # to connect, between bytes read, between bytes sent, for a connection
_MAX_TREE = 200_000  # entries of a repository
COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_URL = re.compile(r"/(?:api/)?kernels/([^/?]+/[^/?]+)/")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_repo_id(repo_id: str) -> None:
    """Raise UsageError unless `repo_id` is written org/name."""
    if not isinstance(repo_id, str) or not _REPO_ID.fullmatch(repo_id) or ".." in repo_id:
        raise UsageError(f"{repo_id!r} is not a repository: write org/name, e.g. kernels/paged-attention")


class Refs(Record):
    """Commit of each branch and tag by short name, of the repository that answered."""

    repo_id: str
    commits: Mapping[str, str]


class IndexAnswer(Record):
    """index.json at a revision: the repository and commit that answered (None: not said), None without index.

    `envelope` is what signs it, None where there is no signature.
    """

    repo_id: str
    commit: str | None
    data: bytes | None
    envelope: bytes | None = None


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
            data = self._parse(body(response, what), what)
            try:
                refs = {
                    str(ref["name"]): str(ref["targetCommit"]) for ref in (*data["tags"], *data["branches"])
                }
            except (KeyError, TypeError):
                raise self._no_hub(what) from None
            return Refs(self._moved_to(response, repo_id), refs)

    def index(self, repo_id: str, revision: str) -> IndexAnswer:
        """index.json at a branch, tag or commit, and what signs it, both asked for at once; and which commit it is.

        Raises:
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, DownloadError, OfflineError
        """
        signed = InBackground(lambda: self._small_file(repo_id, revision, ENVELOPE_NAME, MAX_ENVELOPE_BYTES))
        try:
            answer = self._small_file(repo_id, revision, INDEX_NAME, MAX_JSON_BYTES)
        finally:
            signed.wait()
        if answer.data is None:
            return answer
        envelope = signed.result()
        if answer.commit is not None and envelope.commit != answer.commit:  # the branch moved in between
            return replace(answer, envelope=self.envelope(answer.repo_id, answer.commit))
        return replace(answer, envelope=envelope.data)

    def envelope(self, repo_id: str, revision: str) -> bytes | None:
        """What signs index.json at a branch, tag or commit; None where nothing does. Raises as `index`."""
        return self._small_file(repo_id, revision, ENVELOPE_NAME, MAX_ENVELOPE_BYTES).data

    def _small_file(self, repo_id: str, revision: str, name: str, limit: int) -> IndexAnswer:
        """A file of the repository's root that need not be there, of at most `limit` bytes."""
        what = f"{name} of {repo_id}"
        with self._get(_file_url(repo_id, revision, name), what, repo_id, ("EntryNotFound",)) as response:
            found = response.status_code == 200
            data = b"".join(chunks(response, what, None, limit)) if found else None
            commit = response.headers.get("x-repo-commit") or _first_hop(response, "x-repo-commit")
            if not commit or not COMMIT.fullmatch(commit):
                commit = None
            return IndexAnswer(self._moved_to(response, repo_id), commit, data)

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
                found = self._parse(body(response, what), what)
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
            data = b"".join(chunks(response, what, size, MAX_JSON_BYTES if size is None else size))
        if entry is not None:
            digest = entry.new_hash()
            digest.update(data)
            check(entry, digest.hexdigest(), what)
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
            data = self._parse(body(response, what), what)
            return isinstance(data, dict) and data.get("trustedKernelPublisher") is True

    def download(self, repo_id: str, commit: str, path: str, entry: Entry, destination: Path) -> None:
        """Complete the file `destination`, read-only and flushed to disk; only what it lacks is asked for.

        Raises:
            DownloadError: fewer bytes than `entry` promises, or the hub failed: what came is kept. More: it is not.
            IntegrityError: as many bytes, but others.
            VersionNotFoundError, RepositoryNotFoundError, AuthenticationError, OfflineError, OSError
        """
        what, url = f"{path} of {repo_id}", _file_url(repo_id, commit, path)
        if is_whole(destination, entry):
            return
        with open_partial(destination, entry.size) as file:
            digest = entry.new_hash()
            start = read_into(digest, file)
            if start:
                if start < entry.size:
                    self._append(url, what, repo_id, entry, file, digest)
                if digest.hexdigest() == entry.digest:
                    return finish(file)
            # Nothing is there, or what an earlier attempt left is of no use.
            file.seek(0)
            file.truncate()
            digest = entry.new_hash()
            self._append(url, what, repo_id, entry, file, digest)
            if digest.hexdigest() != entry.digest:
                file.truncate(0)
            check(entry, digest.hexdigest(), what)
            finish(file)

    def _append(
        self, url: str, what: str, repo_id: str, entry: Entry, file: BinaryIO, digest: hashlib._Hash
    ) -> None:
        """Ask for what follows the end of `file`; nothing is appended where the hub answers with another part."""
        start = file.tell()
        with self._get(url, what, repo_id, start=start) as response:
            if start and not continues(response, start):
                return
            try:
                for chunk in chunks(response, what, entry.size, entry.size, start):
                    digest.update(chunk)
                    file.write(chunk)
            except TooLongError:
                file.truncate(0)
                raise

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
    def _get(
        self, url: str, what: str, repo_id: str, absent: tuple[str, ...] = (), start: int = 0
    ) -> Iterator[Any]:
        """A successful streaming response (httpx.Response).

        A 404 with one of the error codes in `absent` is an answer too. With `start`, the body from that byte
        on is asked for, and that the hub gives all of it or has no such byte are answers too.
        """
        with self.stream(url, what, start) as response:
            is_absent = response.status_code == 404 and response.headers.get("x-error-code", "") in absent
            accepted = (200, 206, 416) if start else (200,)
            if response.status_code not in accepted and not is_absent:
                raise self._refusal(response, what, repo_id)
            yield response

    @contextmanager
    def stream(self, url: str, what: str, start: int = 0) -> Iterator[Any]:
        """The streaming response to a GET, whatever its status. Raises DownloadError, OfflineError."""
        endpoint = self._config.endpoint
        # A body in transit compressed would have another length than the manifest promises.
        headers = {"accept-encoding": "identity", "user-agent": self._config.user_agent}
        if self._config.token:
            headers["authorization"] = f"Bearer {self._config.token}"
        if start:
            headers["range"] = f"bytes={start}-"
        request = session().stream("GET", endpoint + url, headers=headers, timeout=_TIMEOUTS_S)
        with ExitStack() as stack:
            try:
                response = stack.enter_context(request)
            except offline_errors():
                raise OfflineError(
                    f"{what}: huggingface_hub was imported with HF_HUB_OFFLINE=1: unset it and start again"
                ) from None
            except http_errors() as error:
                raise DownloadError(
                    f"{what}: cannot reach {endpoint} ({error}): check the network and HF_ENDPOINT"
                ) from None
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
