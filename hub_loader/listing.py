"""Packages without an index.json, as the public Hub has them: what the repository's tree says of each variant.

The tree gives every file's size and its git blob id, or for a large file its SHA-256; the two are the proof
that `index.json` is elsewhere. A variant's listing, written canonically, has a SHA-256 of its own (`key`), so
that a lock file can pin a variant and a cache can name it. Pure: parsed JSON in, frozen records out.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InvalidKernelError
from .manifest import (
    METADATA_NAME,
    BackendInfo,
    BlobEntry,
    Entry,
    FileEntry,
    check_path,
    parsing,
    sha256_hex,
)
from .record import Record
from .toml import load_toml
from .variant import parse_variant

STATUS_NAME = "kernel-status.toml"
SIGNATURE_NAME = "metadata.json.sigstore"
_OID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger("hub_loader")


class ListedVariant(Record):
    """A variant as the tree lists it: `files` holds every file but metadata.json."""

    metadata: Entry
    files: Mapping[str, Entry]

    @property
    def key(self) -> str:
        """The digest that pins every byte of the variant: SHA-256 of `to_json()`."""
        return sha256_hex(self.to_json())

    @property
    def size(self) -> int:
        """Bytes to fetch for the whole variant."""
        return sum(entry.size for entry in self.all_files.values())

    @property
    def all_files(self) -> dict[str, Entry]:
        """Every file of the variant folder, metadata.json included."""
        return {METADATA_NAME: self.metadata, **self.files}

    def to_json(self) -> bytes:
        """The listing's bytes: sorted keys, no white space; equal listings give equal bytes."""
        files = {
            path: {"sha256" if isinstance(entry, FileEntry) else "oid": entry.digest, "size": entry.size}
            for path, entry in self.all_files.items()
        }
        return json.dumps(files, sort_keys=True, separators=(",", ":")).encode()


class Listing(Record):
    """The variants of a commit, or the repository and revision that its `kernel-status.toml` points to."""

    variants: Mapping[str, ListedVariant]
    moved_to: tuple[str, str] | None = None

    def to_json(self) -> bytes:
        """For the cache; `parse_listing` reads it."""
        variants = {name: json.loads(variant.to_json()) for name, variant in self.variants.items()}
        data = {"variants": variants, "moved_to": self.moved_to}
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def read_tree(entries: Iterable[Mapping[str, Any]], *, origin: str) -> dict[str, ListedVariant]:
    """The variants below build/ in a recursive tree as the Hub answers it.

    A folder without metadata.json or with a name outside the grammar is passed over, as is Python bytecode:
    neither is ever downloaded.

    Raises:
        InvalidKernelError: the answer is malformed, or a path could leave its folder.
    """
    return parsing(origin, lambda: _read_tree(entries, origin))


def status_entry(entries: Iterable[Mapping[str, Any]]) -> Entry | None:
    """The file in a tree that announces where the repository has moved, if there is one."""
    return next((_entry(entry) for entry in entries if entry.get("path") == STATUS_NAME), None)


def parse_status(data: bytes, *, origin: str) -> tuple[str, str]:
    """Repository and revision that a `kernel-status.toml` points to.

    Raises:
        InvalidKernelError: it is not TOML with kind = "redirect" and a destination.
    """

    def parse() -> tuple[str, str]:
        status = load_toml(data.decode())
        if status["kind"] != "redirect":
            raise InvalidKernelError(f"the kind {status['kind']!r} is not known: upgrade kernel-hub")
        return str(status["destination"]), str(status.get("revision", "main"))

    return parsing(origin, parse)


def parse_listing(data: bytes, *, origin: str) -> Listing:
    """What `Listing.to_json` wrote. Raises InvalidKernelError for anything else."""

    def parse() -> Listing:
        document = json.loads(data)
        variants = {name: _variant(files) for name, files in document["variants"].items()}
        moved = document["moved_to"]
        return Listing(variants, None if moved is None else (str(moved[0]), str(moved[1])))

    return parsing(origin, parse)


def parse_listed_variant(data: bytes, *, origin: str) -> ListedVariant:
    """What `ListedVariant.to_json` wrote. Raises InvalidKernelError for anything else."""
    return parsing(origin, lambda: _variant(json.loads(data)))


def backend_of(name: str) -> BackendInfo:
    """The backend that a variant's name states; its architectures only metadata.json knows.

    Raises:
        ValueError: the name is not in the grammar.
    """
    return BackendInfo(parse_variant(name).backend.name)


def _read_tree(entries: Iterable[Mapping[str, Any]], origin: str) -> dict[str, ListedVariant]:
    found: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry["type"] != "file":
            continue
        folder, _, rest = str(entry["path"]).partition("/")
        name, _, path = rest.partition("/")
        if folder == "build" and path and not _is_bytecode(path):
            check_path(path)
            found.setdefault(name, {})[path] = _entry(entry)
    variants = {}
    for name, files in sorted(found.items()):
        metadata = files.pop(METADATA_NAME, None)
        if metadata is None or not _is_variant(name, origin):
            continue
        variants[name] = ListedVariant(metadata, files)
    return variants


def _is_bytecode(path: str) -> bool:
    return "__pycache__" in path.split("/") or path.endswith((".pyc", ".pyo"))


def _is_variant(name: str, origin: str) -> bool:
    try:
        parse_variant(name)
    except ValueError as error:
        logger.warning("%s: build/%s is passed over: %s", origin, name, error)
        return False
    return True


def _entry(entry: Mapping[str, Any]) -> Entry:
    lfs = entry.get("lfs")
    if lfs is not None:
        return _checked(FileEntry(str(lfs["oid"]).removeprefix("sha256:"), lfs["size"]), entry["path"])
    return _checked(BlobEntry(entry["oid"], entry["size"]), entry["path"])


def _variant(files: Mapping[str, Any]) -> ListedVariant:
    entries: dict[str, Entry] = {}
    for path, value in files.items():
        check_path(path)
        size = value["size"]
        entry = BlobEntry(value["oid"], size) if "oid" in value else FileEntry(value["sha256"], size)
        entries[path] = _checked(entry, path)
    return ListedVariant(entries.pop(METADATA_NAME), entries)


def _checked(entry: Entry, path: str) -> Entry:
    pattern = _SHA256 if isinstance(entry, FileEntry) else _OID
    if type(entry.size) is not int or entry.size < 0 or not pattern.fullmatch(entry.digest):
        raise InvalidKernelError(f"{path!r} has a malformed digest or size")
    return entry
