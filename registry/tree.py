"""What a commit is, in git's own terms: files, the trees above them, and the ids of both.

Ids are the ones git computes for the same content, so an exported repository keeps its commits.
A snapshot is a mapping from path to `File`; operations turn one snapshot into the next. Pure.

Source of the formats: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects and, for pointers,
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from .errors import bad_request, entry_not_found
from .names import check_path


@dataclass(frozen=True)
class File:
    """A file of a commit: git blob id (of the pointer for LFS), SHA-256 and size in bytes of the content."""

    oid: str
    sha256: str
    size: int
    lfs: bool = False


Snapshot = Mapping[str, File]


@dataclass(frozen=True)
class Add:
    """Put `file` at `path`, new or in place of the one there."""

    path: str
    file: File


@dataclass(frozen=True)
class Delete:
    """Remove the file at `path`, or with `folder` everything below it."""

    path: str
    folder: bool = False


Operation = Add | Delete


@dataclass(frozen=True)
class Entry:
    """One line of a tree listing: a file, or a folder with its tree id."""

    path: str
    type: Literal["file", "directory"]
    oid: str
    file: File | None = None


def blob_oid(content: bytes) -> str:
    """Git's id of a file with this content."""
    return _object_oid("blob", content)


def blob_hash(size: int) -> hashlib._Hash:
    """A hash whose hex digest, once fed a file's `size` bytes, is git's id of the file."""
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def lfs_file(sha256: str, size: int) -> File:
    """The `File` whose blob is a Git LFS pointer to content of that SHA-256 and size."""
    return File(blob_oid(lfs_pointer(sha256, size)), sha256, size, lfs=True)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def apply(snapshot: Snapshot, operations: Iterable[Operation]) -> dict[str, File]:
    """The snapshot after all operations: deletions first, whatever their order, then additions.

    Raises RequestError: 400 for a bad path, one that is both file and folder or two that are the same text in
    different bytes, 404 for deleting nothing.
    """
    operations = list(operations)
    files = dict(snapshot)
    for operation in operations:
        check_path(operation.path)
        if isinstance(operation, Delete):
            for path in _deleted(snapshot, operation):
                files.pop(path, None)
    for operation in operations:
        if isinstance(operation, Add):
            files[operation.path] = operation.file
    for path in files:
        for folder in _folders_above(path):
            if folder in files:
                raise bad_request(
                    f"{folder!r} would be a file and, for {path!r}, a folder: delete one of them."
                )
    _check_twins(files)
    return files


def _check_twins(paths: Iterable[str]) -> None:
    """Two spellings of one name (é as one character, or e and an accent) are one file on some file systems."""
    seen: dict[str, str] = {}
    for path in paths:
        if not path.isascii():
            twin = seen.setdefault(unicodedata.normalize("NFC", path), path)
            if twin != path:
                raise bad_request(f"{path!r} and {twin!r} are the same name in Unicode: delete one of them.")


def _deleted(snapshot: Snapshot, operation: Delete) -> list[str]:
    if operation.folder:
        paths = [path for path in snapshot if path.startswith(operation.path + "/")]
    else:
        paths = [operation.path] if operation.path in snapshot else []
    if not paths:  # the first words are known to clients, which add a hint to them
        kind = "folder" if operation.folder else "file"
        raise entry_not_found(f"A {kind} with this name doesn't exist: {operation.path!r}.")
    return paths


def _folders_above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def entries(snapshot: Snapshot) -> tuple[str, list[Entry]]:
    """The root's tree id, and every file and folder of the snapshot sorted by path."""
    children: dict[str, list[tuple[str, Entry]]] = {"": []}
    for path, file in snapshot.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, []).append((name, Entry(path, "file", file.oid, file)))
        for above in _folders_above(path):
            children.setdefault(above, [])
    # Deepest first: a folder's id needs the ids of the folders in it.
    for folder in sorted(children.keys() - {""}, key=lambda path: path.count("/"), reverse=True):
        above, _, name = folder.rpartition("/")
        children[above].append((name, Entry(folder, "directory", _tree_oid(children[folder]))))
    listed = [entry for folder in children.values() for _, entry in folder]
    return _tree_oid(children[""]), sorted(listed, key=lambda entry: entry.path)


def _tree_oid(children: list[tuple[str, Entry]]) -> str:
    lines = []
    for name, entry in children:
        is_folder = entry.type == "directory"
        mode = b"40000" if is_folder else b"100644"
        order = name.encode() + (b"/" if is_folder else b"")  # git compares folders as if they ended in "/"
        lines.append((order, mode + b" " + name.encode() + b"\0" + bytes.fromhex(entry.oid)))
    return _object_oid("tree", b"".join(line for _, line in sorted(lines)))


def commit_oid(tree: str, parent: str | None, author: str, time: int, message: str) -> str:
    """Git's id of a commit: `time` in seconds since 1970 UTC, `author` a name without angle brackets."""
    lines = [f"tree {tree}"]
    if parent is not None:
        lines.append(f"parent {parent}")
    lines += [f"{role} {author} <{author}> {time} +0000" for role in ("author", "committer")]
    return _object_oid("commit", ("\n".join(lines) + f"\n\n{message}\n").encode())


def _object_oid(kind: str, content: bytes) -> str:
    digest = hashlib.sha1(f"{kind} {len(content)}\0".encode(), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()
