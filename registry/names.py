"""What may be a name here: organizations, repositories, branches and tags, paths inside a commit.

Each function returns its argument or raises a 400 that says what is wrong. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import bad_request

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
# First segments of the URL space: an organization of that name would be unreachable.
_RESERVED = frozenset(
    {
        "admin",
        "api",
        "assets",
        "compatibility",
        "datasets",
        "docs",
        "favicon.ico",
        "healthz",
        "join",
        "kernels",
    }
    | {"login", "logout", "metrics", "models", "new", "oidc", "openapi.json", "organizations", "readyz"}
    | {"robots.txt", "search", "settings", "spaces", "static", "tuf", "users"}
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What `git check-ref-format` forbids anywhere in a reference.
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
# Control characters, and those that turn the direction of text, so that a name does not read as what it is.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class RepoName:
    """The two halves of `org/name`."""

    org: str
    name: str

    def __str__(self) -> str:
        return f"{self.org}/{self.name}"


def check_org(name: object) -> str:
    """An organization's name: letters, digits, `.`, `_`, `-`, at most 96, none of the reserved words."""
    if not isinstance(name, str) or not _is_name(name) or name.lower() in _RESERVED:
        raise bad_request(
            f"{name!r} cannot name an organization: use letters, digits, '-', '_' and '.', begin and end "
            f"with a letter or digit, at most 96 characters, and none of {', '.join(sorted(_RESERVED))}."
        )
    return name


def check_repo_name(name: object) -> str:
    """A repository's name without its organization."""
    if not isinstance(name, str) or not _is_name(name) or name.endswith(".git"):
        raise bad_request(
            f"{name!r} cannot name a repository: use letters, digits, '-', '_' and '.', begin and end with "
            "a letter or digit, at most 96 characters, without '..', '--' or a final '.git'."
        )
    return name


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def check_ref_name(name: object) -> str:
    """A branch's or tag's short name, e.g. `v1`: git's rules, and nothing that reads as a commit id."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 200
        or _BAD_IN_REF.search(name)
        or _COMMIT.fullmatch(name)
        or _UNSEEN.search(name)
        or _NOT_TEXT.search(name)
        or name.startswith(("refs/", "-", "/"))
        or name.endswith(("/", "."))
        or name == "@"
        or any(part.startswith(".") or part.endswith(".lock") for part in name.split("/"))
    ):
        raise bad_request(f"{name!r} cannot name a branch or tag: take a short name such as 'v1'.")
    return name


def check_path(path: object) -> str:
    """A file's or folder's path inside a commit: relative, `/` between parts, UTF-8, at most 1,024 bytes."""
    if not isinstance(path, str) or not path:
        raise bad_request("A path in a commit is empty: give each file a relative path such as 'build/x.so'.")
    parts = path.split("/")
    try:
        too_long = len(path.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        raise bad_request(f"The path {path!r} is not valid Unicode: rename the file.") from None
    if too_long:
        raise bad_request(f"The path {path[:80]!r}... is too long: at most 1024 bytes, 255 for each part.")
    if any(part in ("", ".", "..") for part in parts):
        raise bad_request(f"The path {path!r} is not relative and plain: no '..', '.', '//' or leading '/'.")
    if any(part.lower() == ".git" for part in parts):
        raise bad_request(f"The path {path!r} has a part '.git', which no repository can hold.")
    if "\\" in path or _UNSEEN.search(path):
        raise bad_request(f"The path {path!r} has a backslash or a control character: rename the file.")
    return path


def check_text(text: str) -> str:
    """A text that every database can hold: no NUL, no half of a surrogate pair."""
    if _NOT_TEXT.search(text):
        raise bad_request(f"{text[:80]!r} has a NUL or half a surrogate pair: send plain Unicode text.")
    return text


def check_sha256(text: object) -> str:
    """A SHA-256 in lower-case hex."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise bad_request(f"{text!r} is not a SHA-256 in lower-case hex.")
    return text


def is_commit(text: str) -> bool:
    """Whether this is a commit's full id."""
    return _COMMIT.fullmatch(text) is not None
