"""What an export carries of a repository, as a JSON document: references, commits, and their files.

Reading one back checks it as strictly as an upload, and every id is computed anew: a tree's from its files, a
commit's from its tree, parent, author, time and message. So a document that is read says what git would say of
the same commits. Of a copy of an upstream's repository (`carried_copy.py`) the commits' ids cannot be computed, its
trees' can. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from hub_loader.errors import IntegrityError

from .carried_copy import Copied, check_claims, check_stand_in, read_copied
from .errors import RequestError
from .mirrored import is_awaited
from .names import (
    RepoName,
    check_org,
    check_path,
    check_ref_name,
    check_repo_name,
    check_sha256,
    check_text,
    is_commit,
)
from .store import MAIN
from .tree import Add, File, apply, commit_oid, entries, lfs_file

_KINDS = ("heads", "tags")  # pull requests are between the people of one hub


@dataclass(frozen=True)
class Point:
    """A commit, as its row has it; `time` is UTC without saying so, in whole seconds."""

    parent: str | None
    tree: str
    author: str
    message: str
    time: datetime


@dataclass(frozen=True)
class Carried:
    """A repository: `refs` (`heads/v1`) to commit ids, `commits` by id, `trees` by id to files by path.

    `copied` says of what it is a copy; None for a repository of the hub itself.
    """

    repo: RepoName
    private: bool
    gated: str | None
    created_at: datetime
    refs: Mapping[str, str]
    commits: Mapping[str, Point]
    trees: Mapping[str, Mapping[str, File]]
    copied: Copied | None = None

    def files(self) -> Iterator[File]:
        """Every file of every tree whose content comes along; one may come several times."""
        for tree in self.trees.values():
            yield from (file for file in tree.values() if not is_awaited(file.sha256))

    def follows(self, new: str, old: str) -> bool:
        """Whether the commit `new` is `old`, or was made on top of it."""
        at: str | None = new
        while at is not None and at != old:
            at = self.commits[at].parent
        return at is not None


def to_json(carried: Carried) -> bytes:
    """The document; the same for the same repository."""
    document = {
        "repo": str(carried.repo),
        "private": carried.private,
        "gated": carried.gated,
        "created_at": carried.created_at.isoformat(),
        "refs": carried.refs,
        "commits": {
            oid: [point.parent, point.tree, point.author, point.message, point.time.isoformat()]
            for oid, point in carried.commits.items()
        },
        "trees": {
            oid: {path: [file.oid, file.sha256, file.size, file.lfs] for path, file in tree.items()}
            for oid, tree in carried.trees.items()
        },
    } | ({} if carried.copied is None else {"copied": carried.copied.document()})
    return json.dumps(document, sort_keys=True).encode()


def from_json(content: bytes) -> Carried:
    """The repository that a document describes. Raises IntegrityError for anything but what `to_json` writes."""
    try:
        carried = _read(json.loads(content))
        _check(carried)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise IntegrityError(
            f"The archive describes a repository wrongly ({error!r}): export again."
        ) from None
    except RequestError as error:
        raise IntegrityError(f"The archive has what no repository can hold: {error.message}") from None
    return carried


def _read(document: Any) -> Carried:
    org, _, name = document["repo"].partition("/")
    if not isinstance(document["private"], bool) or document["gated"] not in (None, "auto", "manual"):
        raise ValueError("private or gated")
    commits = {
        oid: Point(parent, tree, check_text(author), check_text(message), _time(time))
        for oid, (parent, tree, author, message, time) in document["commits"].items()
    }
    trees = {
        oid: {path: _file(*file) for path, file in tree.items()} for oid, tree in document["trees"].items()
    }
    repo = RepoName(check_org(org), check_repo_name(name))
    created = _time(document["created_at"])
    refs, copied = dict(document["refs"]), read_copied(document.get("copied"))
    return Carried(repo, document["private"], document["gated"], created, refs, commits, trees, copied)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is not None or time.microsecond:
        raise ValueError(text)
    return time


def _file(oid: str, sha256: str, size: int, lfs: bool) -> File:
    file = File(oid, check_sha256(sha256), size, lfs)
    if not is_commit(oid) or type(size) is not int or not 0 <= size < 1 << 62 or type(lfs) is not bool:
        raise ValueError(file)
    if lfs and not is_awaited(sha256) and lfs_file(sha256, size) != file:
        raise ValueError(file)
    return file


def _check(carried: Carried) -> None:
    for name, oid in carried.refs.items():
        kind, _, short = name.partition("/")
        if kind not in _KINDS or oid not in carried.commits:
            raise ValueError(name)
        check_ref_name(short)
    if f"heads/{MAIN}" not in carried.refs and carried.copied is None:
        raise ValueError(f"no branch {MAIN}")
    for oid, tree in carried.trees.items():
        adds = [Add(check_path(path), file) for path, file in tree.items()]
        if entries(apply({}, adds))[0] != oid:
            raise ValueError(f"the tree {oid}")
        for file in tree.values():
            check_stand_in(file, carried.copied)
    check_claims((file for tree in carried.trees.values() for file in tree.values()), carried.copied)
    for oid, point in carried.commits.items():
        _check_commit(carried, oid, point)


def _check_commit(carried: Carried, oid: str, point: Point) -> None:
    if carried.copied is None:
        time = int(point.time.replace(tzinfo=timezone.utc).timestamp())
        if commit_oid(point.tree, point.parent, point.author, time, point.message) != oid:
            raise ValueError(f"the commit {oid}")
    elif point.parent is not None or not is_commit(oid):
        raise ValueError(f"the commit {oid} of a copy")
    if point.tree not in carried.trees or not (point.parent is None or point.parent in carried.commits):
        raise ValueError(f"the commit {oid} refers to what is not there")
    if len(point.author) > 96:
        raise ValueError(point.author)
