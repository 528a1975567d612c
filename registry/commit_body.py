"""The body of a commit: JSON lines, a header and then one operation each.

A line may carry a whole binary in base64, so it is never parsed as JSON with the content in it: the content
is cut out and decoded piece by piece into the blob store. The body itself may be a file mapped into memory.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from .blobs import BlobStore
from .errors import RequestError, bad_request
from .http import MAX_BODY_BYTES, parse_json
from .names import check_path, check_sha256, check_text
from .tree import Add, Delete, File, Operation, blob_hash, lfs_file

# In JSON an unescaped `"content"` before a colon can only be a key, and nothing in base64 is escaped.
_CONTENT = re.compile(rb'"content"\s*:\s*"([A-Za-z0-9+/]+={0,2})"')
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_CHUNK = 1 << 20  # characters of base64 decoded at a time; a multiple of 4
_COMMIT_PREFIX = re.compile(r"[0-9A-Fa-f]{5,40}")


@dataclass(frozen=True)
class CommitHeader:
    """A commit's message, and the head it insists on."""

    message: str
    parent: str | None


def read_commit(body: bytes | mmap, blobs: BlobStore) -> tuple[CommitHeader, list[Operation]]:
    """Parse the lines, keeping each file's content as a blob on the way. Raises RequestError 400."""
    header: CommitHeader | None = None
    operations: list[Operation] = []
    for start, end in _lines(body):
        rest, content = _cut_content(body, start, end)
        if not rest.strip():
            continue
        if len(rest) > MAX_BODY_BYTES:
            raise bad_request(
                f"A line of a commit has more than {MAX_BODY_BYTES} bytes beside base64 content."
            )
        item = parse_json(rest)
        key, value = item.get("key"), item.get("value")
        if not isinstance(value, dict):
            raise bad_request("Each line of a commit has to be {key, value}, the value an object.")
        if key == "header":
            header = _read_header(value)
        else:
            operations.append(_read_operation(key, value, content, blobs))
    if header is None:
        raise bad_request("A commit needs a header line with its summary.")
    return header, operations


def _lines(body: bytes | mmap) -> Iterator[tuple[int, int]]:
    """Where each line begins and ends."""
    start = 0
    while (end := body.find(b"\n", start)) >= 0:
        yield start, end
        start = end + 1
    yield start, len(body)


def _cut_content(body: bytes | mmap, start: int, end: int) -> tuple[bytes, memoryview | None]:
    """The line with an empty string for its base64 content, and the content, not copied."""
    found = _CONTENT.search(body, start, end)
    if found is None:
        return body[start : min(end, start + MAX_BODY_BYTES + 1)], None
    first, last = found.span(1)
    if first - start + end - last > MAX_BODY_BYTES:  # copied only if it is small
        return body[start : start + MAX_BODY_BYTES + 1], None
    return body[start:first] + body[last:end], memoryview(body)[first:last]


def _read_header(value: dict[str, Any]) -> CommitHeader:
    summary, description = value.get("summary"), value.get("description") or ""
    parent = value.get("parentCommit")
    if not isinstance(summary, str) or not summary.strip() or not isinstance(description, str):
        raise bad_request("A commit needs a summary: pass a commit message.")
    if parent is not None and not (isinstance(parent, str) and _COMMIT_PREFIX.fullmatch(parent)):
        raise bad_request(f"parentCommit {parent!r} is not a commit id: pass 5 to 40 hex digits.")
    return CommitHeader(check_text(f"{summary}\n\n{description}".strip()), parent)


def _read_operation(
    key: object, value: dict[str, Any], content: memoryview | None, blobs: BlobStore
) -> Operation:
    path = value.get("path")
    if key == "file":
        return Add(check_path(path), _read_file(value, content, blobs))
    if key == "lfsFile":
        return Add(check_path(path), _read_lfs_file(value, blobs))
    if key in ("deletedFile", "deletedFolder"):
        plain = path.rstrip("/") if isinstance(path, str) else path
        return Delete(check_path(plain), folder=key == "deletedFolder")
    raise bad_request(f"A commit here has no operation {key!r}.")


def _read_file(value: dict[str, Any], content: memoryview | None, blobs: BlobStore) -> File:
    size, chunks = _decode(value, content)
    oid = blob_hash(size)

    def hashed() -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            oid.update(chunk)
            yield chunk

    sha256 = blobs.put(hashed())
    return File(oid.hexdigest(), sha256, size)


def _decode(value: dict[str, Any], content: memoryview | None) -> tuple[int, Iterator[bytes | memoryview]]:
    """A file's size in bytes and its content in pieces; `content` is what was cut out of the line."""
    encoding = value.get("encoding", "utf-8")
    if content is not None and value.get("content") != "":  # it was cut out of somewhere else
        raise bad_request(f"The line of {value.get('path')!r} has content twice: send it once, in its value.")
    try:
        sent = content if content is not None else memoryview(value["content"].encode())
    except (AttributeError, KeyError, UnicodeEncodeError):
        sent, encoding = memoryview(b""), "text"
    if encoding == "utf-8":
        return len(sent), iter([sent])
    if encoding == "base64" and len(sent) % 4 == 0 and _BASE64.fullmatch(sent):
        size = len(sent) // 4 * 3 - bytes(sent[-2:]).count(b"=")
        return size, (binascii.a2b_base64(sent[at : at + _CHUNK]) for at in range(0, len(sent), _CHUNK))
    raise bad_request(f"The content of {value.get('path')!r} is not valid {encoding!r}: send base64.")


def _read_lfs_file(value: dict[str, Any], blobs: BlobStore) -> File:
    sha256 = check_sha256(value.get("oid"))
    size = blobs.keep(sha256)
    if size is None or value.get("size", size) != size:
        raise not_here(value.get("path"), sha256)
    return lfs_file(sha256, size)


def not_here(path: object, sha256: str) -> RequestError:
    """400 for a file that is named by its digest, and whose content was not sent."""
    return bad_request(f"The content of {path!r} ({sha256}) is not here: upload it before the commit.")
