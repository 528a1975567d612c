"""Content in a folder and in a bucket: kept once, whole, read in ranges, in little memory."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import obstore
import pytest

from hub_loader.errors import RegistryError, UsageError
from registry.blobs import BlobStore
from registry.content import asked_range
from registry.errors import RequestError

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path, storage: str | None) -> BlobStore:
    return BlobStore(tmp_path / "data", storage)


def test_put_when_read_then_whole_and_in_ranges_it_is_the_same(blobs: BlobStore) -> None:
    assert blobs.size(SHA256) is None
    assert blobs.put([CONTENT[:1000], memoryview(CONTENT)[1000:]]) == SHA256
    blobs.sync()
    assert blobs.size(SHA256) == len(CONTENT)
    assert b"".join(blobs.read(SHA256)) == CONTENT
    assert b"".join(blobs.read(SHA256, 100_000)) == CONTENT[100_000:]
    assert b"".join(blobs.read(SHA256, 5, 250_007)) == CONTENT[5:250_007]
    assert list(blobs.storage.names()) == [(SHA256, len(CONTENT))]


def test_put_when_empty_then_it_is_a_blob(blobs: BlobStore) -> None:
    empty = blobs.put([])
    assert (blobs.size(empty), b"".join(blobs.read(empty))) == (0, b"")


def test_put_when_many_put_the_same_then_it_is_there_once(blobs: BlobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: blobs.put([CONTENT]), range(16))) == {SHA256}
    assert list(blobs.storage.names()) == [(SHA256, len(CONTENT))]
    assert b"".join(blobs.read(SHA256)) == CONTENT


def test_adopt_when_the_bytes_are_others_then_refused_and_nothing_is_kept(blobs: BlobStore) -> None:
    with blobs.temporary() as (path, file):
        file.write(CONTENT + b"!")
        with pytest.raises(RequestError, match="send the file again"):
            blobs.adopt(path, file, SHA256, len(CONTENT))
    assert list(blobs.storage.names()) == []


def test_read_when_it_is_not_here_then_file_not_found(blobs: BlobStore) -> None:
    with pytest.raises(FileNotFoundError):
        next(blobs.read(SHA256))


def test_delete_when_done_twice_then_it_is_gone(blobs: BlobStore) -> None:
    blobs.put([CONTENT])
    blobs.storage.delete(SHA256)
    blobs.storage.delete(SHA256)
    assert blobs.size(SHA256) is None


def test_folder_when_a_disk_error_left_part_of_a_blob_then_the_next_upload_replaces_it(
    tmp_path: Path,
) -> None:
    blobs = BlobStore(tmp_path)
    (tmp_path / "blobs" / SHA256).write_bytes(CONTENT[:10])
    blobs.put([CONTENT])
    assert b"".join(blobs.read(SHA256)) == CONTENT


def test_s3_when_larger_than_one_request_then_it_comes_in_parts_and_once(tmp_path: Path, s3_url: str) -> None:
    blobs = BlobStore(tmp_path, s3_url)
    pieces = [os.urandom(1 << 20) for _ in range(17)] + [b"end"]
    sha256 = blobs.put(pieces)
    assert blobs.size(sha256) == (17 << 20) + 3
    assert hashlib.sha256(b"".join(blobs.read(sha256))).hexdigest() == sha256
    # Whoever was slower finds it there, and leaves nothing behind.
    bucket = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    before = bucket.head_object(Bucket=s3_url.split("/")[2], Key=f"some/prefix/blobs/{sha256}")
    with blobs.temporary() as (path, file):
        for piece in pieces:
            file.write(piece)
        file.flush()
        with pytest.raises(obstore.exceptions.AlreadyExistsError):
            blobs.storage._publish_large(path, sha256)  # type: ignore[attr-defined]
    after = bucket.head_object(Bucket=s3_url.split("/")[2], Key=f"some/prefix/blobs/{sha256}")
    assert before["LastModified"] == after["LastModified"]
    listed = bucket.list_objects_v2(Bucket=s3_url.split("/")[2])["Contents"]
    assert {item["Key"] for item in listed} == {"some/prefix/khub-probe", f"some/prefix/blobs/{sha256}"}


def test_s3_when_an_upload_was_cut_short_then_its_parts_are_cleared_when_old(
    tmp_path: Path, s3_url: str
) -> None:
    blobs = BlobStore(tmp_path, s3_url)
    obstore.put(blobs.storage._store, "uploads/left", b"part")  # type: ignore[attr-defined]
    assert blobs.storage.clear_abandoned(3600) == 0
    assert blobs.storage.clear_abandoned(-5) == 1


@pytest.mark.parametrize("url", ["s3:///prefix", "gs://bucket", "/a/folder", "s3://bucket/x?region=y"])
def test_storage_when_the_address_is_of_another_kind_then_usage_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="s3://BUCKET"):
        BlobStore(tmp_path, url)


def test_storage_when_there_is_no_such_bucket_then_it_is_named(tmp_path: Path, s3_url: str) -> None:
    with pytest.raises(RegistryError, match="s3://no-such-bucket/x cannot be used"):
        BlobStore(tmp_path, "s3://no-such-bucket/x")


def test_temporary_when_another_process_uses_the_folder_then_its_files_stay(tmp_path: Path) -> None:
    first, second = BlobStore(tmp_path), BlobStore(tmp_path)
    (tmp_path / "tmp" / "left-by-an-older-program").write_bytes(b"x")
    with first.temporary() as (path, _):
        assert second.clear_temporary() == 1
        assert path.exists()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, (0, 100)),
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=50-500", (50, 100)),
        ("bytes=100-", None),
        ("bytes=-0", None),
        ("bytes=9-3", (0, 100)),  # what is malformed, or several, is answered by the whole
        ("bytes=-", (0, 100)),
        ("bytes=0-1,5-6", (0, 100)),
        ("lines=1-2", (0, 100)),
        (f"bytes={'9' * 5000}-", (0, 100)),
    ],
)
def test_range_when_asked_then_the_bytes_are_those_of_the_rfc(
    asked: str | None, expected: tuple[int, int] | None
) -> None:
    assert asked_range(asked, None, '"e"', 100) == expected


def test_range_when_it_depends_on_another_content_then_the_whole_comes() -> None:
    assert asked_range("bytes=0-9", '"other"', '"e"', 100) == (0, 100)
    assert asked_range("bytes=0-9", '"e"', '"e"', 100) == (0, 10)
