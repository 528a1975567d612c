"""A commit's JSON lines: whatever the JSON looks like, the bytes that arrive are the bytes that are kept."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import commit_body
from registry.blobs import BlobStore
from registry.commit_body import read_commit
from registry.tree import Add, blob_oid

_HEADER = json.dumps({"key": "header", "value": {"summary": "s"}}).encode()
# Paths that try to look like the content's key.
_PATHS = st.sampled_from(["a", '"content": "QUJD"', 'x"content":"', "content", "é"])


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("blobs"))


@given(
    content=st.binary(max_size=200),
    path=_PATHS,
    encoding=st.sampled_from(["base64", "utf-8"]),
    order=st.permutations(["path", "content", "encoding"]),
    compact=st.booleans(),
)
@settings(max_examples=200)
def test_read_commit_when_a_file_is_sent_then_its_bytes_and_ids_are_kept(
    blobs: BlobStore, content: bytes, path: str, encoding: str, order: list[str], compact: bool
) -> None:
    if encoding == "base64":
        text = base64.b64encode(content).decode()
    else:
        text = content.decode("latin-1")
        content = text.encode()
    value = {"path": path, "content": text, "encoding": encoding}
    separators = (",", ":") if compact else (", ", ": ")
    line = json.dumps({"key": "file", "value": {key: value[key] for key in order}}, separators=separators)
    _, operations = read_commit(_HEADER + b"\n" + line.encode(), blobs)
    (operation,) = operations
    assert isinstance(operation, Add) and operation.path == path
    assert operation.file.sha256 == hashlib.sha256(content).hexdigest()
    assert (operation.file.oid, operation.file.size) == (blob_oid(content), len(content))
    assert b"".join(blobs.read(operation.file.sha256)) == content


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3])
def test_read_commit_when_content_spans_pieces_then_nothing_is_lost_between_them(
    blobs: BlobStore, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_body, "_CHUNK", 8)
    content = bytes(range(60 + extra))
    value = {"path": "x", "content": base64.b64encode(content).decode(), "encoding": "base64"}
    line = json.dumps({"key": "file", "value": value}).encode()
    _, operations = read_commit(_HEADER + b"\n\n" + line + b"\n", blobs)
    assert isinstance(operations[0], Add)
    assert b"".join(blobs.read(operations[0].file.sha256)) == content
