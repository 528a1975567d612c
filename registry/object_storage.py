"""Content in an S3 bucket: one object for each, `<prefix>/blobs/<SHA-256>`, through obstore.

An object appears when all of its parts are there, and for the first writer alone (`If-None-Match: *`): small
ones in one request, large ones in parts under a name of their own and then copied where nothing is yet.
Credentials, region and endpoint are what the AWS environment variables say.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import S3Store

from hub_loader.errors import RegistryError, UsageError

from .errors import unavailable
from .names import check_sha256

if TYPE_CHECKING:  # they exist for type checkers alone
    from obstore import GetOptions
    from obstore.store import S3Config

_SINGLE = 16 << 20  # bytes of an object that is sent in one request, and held in memory for it
_PART = 16 << 20  # of the parts of a larger one; S3 takes 10,000 of them
_PARTS_AT_ONCE = 2
_CHUNK = 1 << 20


class ObjectStorage:
    """A bucket, or what is below a prefix of it. Safe to share between threads and processes."""

    def __init__(self, url: str) -> None:
        """Open it. Raises UsageError for an address that is none, RegistryError if it cannot be used."""
        self._url = url
        try:
            self._store = _open(url)
            _probe(self._store)
        except (exceptions.BaseError, FileNotFoundError) as error:
            raise RegistryError(f"{url} cannot be used: {_reason(error)}. Name another.") from None

    def check(self) -> None:
        """Nothing, if the bucket answers. Raises RequestError 503."""
        with self._answering():
            obstore.list_with_delimiter(self._store, "blobs/nothing-here")

    def size(self, sha256: str) -> int | None:
        """Its size in bytes; None if it is not here."""
        with self._answering():
            try:
                return int(obstore.head(self._store, _key(sha256))["size"])
            except FileNotFoundError:
                return None

    def publish(self, file: Path, sha256: str, size: int) -> None:
        """Send the complete file as the content `sha256`, unless that is here."""
        if self.size(sha256) == size:
            return
        with self._answering():
            try:
                if size <= _SINGLE:
                    obstore.put(self._store, _key(sha256), file, mode="create", use_multipart=False)
                else:
                    self._publish_large(file, sha256)
            except exceptions.AlreadyExistsError:
                return  # somebody was faster with the same content

    def _publish_large(self, file: Path, sha256: str) -> None:
        part = f"uploads/{secrets.token_hex(16)}"
        obstore.put(
            self._store,
            part,
            file,
            use_multipart=True,
            chunk_size=_PART,
            max_concurrency=_PARTS_AT_ONCE,
        )
        try:
            obstore.copy(self._store, part, _key(sha256), overwrite=False)
        finally:
            obstore.delete(self._store, part)

    def sync(self) -> None:
        """Nothing to do: what S3 confirmed lasts."""

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, in pieces. Raises FileNotFoundError before the first."""
        with self._answering():
            options: GetOptions = {"range": {"offset": start} if stop is None else (start, stop)}
            whole = (start, stop) == (0, None)  # of nothing there is no range
            found = obstore.get(self._store, _key(sha256), options=None if whole else options)
        return (bytes(chunk) for chunk in found.stream(min_chunk_size=_CHUNK))

    def signed_url(self, sha256: str) -> str | None:
        """An address from which anybody may read it for an hour."""
        return str(obstore.sign(self._store, "GET", _key(sha256), timedelta(hours=1)))

    def delete(self, sha256: str) -> None:
        """Remove it; it need not be here."""
        with self._answering():
            obstore.delete(self._store, _key(sha256))

    def quarantine(self, sha256: str) -> str:
        """Take content that is damaged out of the way; returns where it is kept."""
        with self._answering():
            obstore.rename(self._store, _key(sha256), f"damaged/{sha256}")
        return f"{self._url.rstrip('/')}/damaged/{sha256}"

    def names(self) -> Iterator[tuple[str, int]]:
        """The SHA-256 and size in bytes of everything here."""
        with self._answering():
            for page in obstore.list(self._store, "blobs"):
                for found in page:
                    yield found["path"].rpartition("/")[2], int(found["size"])

    def clear_abandoned(self, seconds: float) -> int:
        """Remove what uploads that were cut short left longer than that ago; returns how many."""
        before = datetime.now(timezone.utc) - timedelta(seconds=seconds)
        removed = 0
        with self._answering():
            for page in obstore.list(self._store, "uploads"):
                for found in page:
                    if found["last_modified"] <= before:
                        obstore.delete(self._store, found["path"])
                        removed += 1
        return removed

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except exceptions.BaseError as error:
            raise unavailable(f"The hub's storage does not answer as it should: {_reason(error)}") from None


def _open(url: str) -> S3Store:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query:
        raise UsageError(f"{url!r} is no storage address: give s3://BUCKET or s3://BUCKET/PREFIX.")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    config: S3Config = {"copy_if_not_exists": "multipart"}
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(minutes=10),  # copying gigabytes within a bucket takes minutes
        },
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=30)},
    )


def _probe(store: S3Store) -> None:
    """Write one object twice. Raises an error of obstore, also if the second was not refused."""
    for _ in range(2):
        try:
            obstore.put(
                store, "khub-probe", b"This shows that the hub can write here, and once.\n", mode="create"
            )
        except exceptions.AlreadyExistsError:
            return
    raise exceptions.NotSupportedError("it overwrites objects in spite of If-None-Match")


def _reason(error: Exception) -> str:
    """The first line of an error of obstore, whose others are details for its developers."""
    return str(error).partition("\n")[0].strip().rstrip(".")


def _key(sha256: str) -> str:
    return f"blobs/{check_sha256(sha256)}"
