"""Ask another hub: its repositories, references, trees and files, over the protocol that clients speak.

Nothing that it answers is believed in advance: answers have a largest size and a longest time, redirects lead
to the same server, or, for a file's content, to another one over https, and our token goes to the upstream alone.
What a user of this hub sent is never part of a request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from .errors import RequestError, unavailable
from .mirrored import awaited
from .names import RepoName, check_path, check_ref_name, check_sha256, is_commit
from .tree import Add, File, apply, lfs_file

KINDS = ("kernels", "models")
_LARGEST_ANSWER = 32 << 20
_MOST_PAGES = 200
_MOST_FILES = 100_000
_SECONDS = 60.0
_SLOWEST = 16 << 10  # bytes per second, of a file
_HOPS = 5
_ABSENT = (401, 403, 404)  # the public Hub answers 401 for what is not there


class AbsentError(Exception):
    """The upstream has no such thing, or not for us."""


class SilentError(RequestError):
    """503: the upstream cannot be reached, or is too slow."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message)


@dataclass(frozen=True)
class Found:
    """A repository of the upstream: its word for the type, who sees it, references (`heads/v1`) to commits."""

    kind: str
    private: bool
    gated: str | None
    refs: dict[str, str]


class Upstream:
    """A hub at `url`. Safe to share between threads."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._origin = _origin(httpx.URL(self.url))
        self._token = token
        timeout = httpx.Timeout(10, read=20)
        # With an `auth` of its own it does not read ~/.netrc, whose passwords are not for this.
        self._client = httpx.Client(timeout=timeout, follow_redirects=False, auth=lambda request: request)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def repo(self, repo: RepoName) -> Found:
        """The repository. Raises AbsentError, and RequestError 503 if the upstream is gone or answers nonsense."""
        for kind in KINDS:
            try:
                about = self._json(f"/api/{kind}/{repo}")
                refs = self._json(f"/api/{kind}/{repo}/refs")
            except AbsentError:
                continue
            spelled = str(about.get("id"))
            if spelled != str(repo) and spelled.lower() == str(repo).lower():
                break  # it redirected: a copy has the upstream's spelling, not that of who asks first
            with _sense(repo):
                gated = about.get("gated") or None
                if gated not in (None, "auto", "manual"):
                    raise ValueError(gated)
                return Found(kind, bool(about.get("private")), gated, _refs(refs))
        raise AbsentError(str(repo))

    def has_commit(self, kind: str, repo: RepoName, oid: str) -> None:
        """Nothing, if the repository has the commit. Raises AbsentError, RequestError 503."""
        if self._json(f"/api/{kind}/{repo}/revision/{oid}").get("sha") != oid:
            raise AbsentError(oid)

    def files(self, kind: str, repo: RepoName, oid: str) -> dict[str, File]:
        """The files of a commit by path. Raises AbsentError, RequestError 503."""
        adds: list[Add] = []
        url: str | None = f"/api/{kind}/{repo}/tree/{oid}?recursive=true&expand=false"
        for _ in range(_MOST_PAGES):
            if url is None:
                break
            listed, url = self._page(url)
            with _sense(repo):
                adds += [_add(entry) for entry in listed if entry["type"] != "directory"]
            if len(adds) > _MOST_FILES:
                break
        if url is not None:
            raise _nonsense(repo, "its listing does not end")
        with _sense(repo):
            return apply({}, adds)

    def content(self, kind: str, repo: RepoName, oid: str, path: str, size: int) -> Iterator[bytes]:
        """A file's content in pieces, at most `size` bytes of it. Raises AbsentError, RequestError 503."""
        prefix = "" if kind == "models" else f"/{kind}"
        address = f"{prefix}/{repo}/resolve/{oid}/{quote(path)}"
        with self._get(address, elsewhere=True) as response:
            yield from _limited(response, size, _SECONDS + size / _SLOWEST)

    def _json(self, path: str) -> dict[str, Any]:
        found, _ = self._load(path)
        if not isinstance(found, dict):
            raise _nonsense(path, "it answers no JSON object")
        return found

    def _page(self, path: str) -> tuple[list[Any], str | None]:
        found, following = self._load(path)
        if not isinstance(found, list):
            raise _nonsense(path, "it answers no JSON list")
        return found, following

    def _load(self, path: str) -> tuple[Any, str | None]:
        with self._get(path, elsewhere=False) as response:
            content = b"".join(_limited(response, _LARGEST_ANSWER, _SECONDS))
            following = response.links.get("next", {}).get("url")
        try:
            return json.loads(content), following
        except (ValueError, RecursionError):
            raise _nonsense(path, "it answers no JSON") from None

    @contextmanager
    def _get(self, path: str, *, elsewhere: bool) -> Iterator[httpx.Response]:
        """The answer to a GET, its body not read yet; `elsewhere`: redirects may lead to another server."""
        url = httpx.URL(self.url).join(path) if "://" in path else httpx.URL(self.url + path)
        try:
            for _ in range(_HOPS):
                self._check(url, elsewhere)
                headers = {"Accept-Encoding": "identity", "User-Agent": "kernel-hub-mirror"}
                if self._token and _origin(url) == self._origin:
                    headers["Authorization"] = f"Bearer {self._token}"
                self._client.cookies.clear()  # nothing of one answer goes into the next request
                with self._client.stream("GET", url, headers=headers) as response:
                    if not response.has_redirect_location:
                        yield self._checked(response)
                        return
                    url = url.join(response.headers["Location"])
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SilentError(
                f"The upstream {self.url} does not answer: {error or type(error).__name__}."
            ) from None
        raise _nonsense(path, "it redirects without end")

    def _check(self, url: httpx.URL, elsewhere: bool) -> None:
        if _origin(url) != self._origin and not (elsewhere and url.scheme == "https"):
            raise _nonsense(self.url, f"it leads to another server, {url.copy_with(query=None)}")

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code in _ABSENT:
            raise AbsentError(str(response.url))
        if response.status_code != 200:
            raise unavailable(f"The upstream {self.url} answers {response.status_code}: try again later.")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _nonsense(self.url, "its answers are compressed although we ask for plain ones")
        return response


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _limited(response: httpx.Response, most: int, seconds: float) -> Iterator[bytes]:
    """The body in pieces. Raises RequestError 503 if it has more than `most` bytes or takes longer."""
    until = time.monotonic() + seconds
    for chunk in response.iter_raw(1 << 20):
        most -= len(chunk)
        if most < 0:
            raise _nonsense(str(response.url), "its answer is longer than it can be")
        if time.monotonic() > until:
            raise SilentError(f"The upstream is too slow: {response.url.copy_with(query=None)}.")
        yield chunk


def _refs(answer: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for kind, prefix in (("branches", "heads"), ("tags", "tags")):
        for ref in answer[kind]:
            if not is_commit(ref["targetCommit"]):
                raise ValueError(ref["targetCommit"])
            found[f"{prefix}/{check_ref_name(ref['name'])}"] = ref["targetCommit"]
    return found


def _add(entry: dict[str, Any]) -> Add:
    path, oid, size = check_path(entry["path"]), entry["oid"], entry["size"]
    lfs = entry.get("lfs")
    if lfs:
        oid, size = lfs["oid"], lfs["size"]
    if type(size) is not int or not 0 <= size < 1 << 62:
        raise ValueError(size)
    if lfs:
        return Add(path, lfs_file(check_sha256(oid), size))
    if not is_commit(oid):
        raise ValueError(oid)
    return Add(path, File(oid, awaited(oid), size))


@contextmanager
def _sense(subject: object) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _nonsense(subject, f"it describes what cannot be ({error!r})") from None
    except RequestError as error:
        raise _nonsense(subject, error.message) from None


def _nonsense(subject: object, reason: str) -> RequestError:
    return unavailable(f"The upstream's answer for {subject} is refused: {reason}.")


def check_url(url: str) -> str:
    """An upstream's address, http or https and a host, without anything secret. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError(f"{url!r} is no address of a hub: give https://HOST, and tokens in the environment")
    return url.rstrip("/")
