"""One file that holds a registry: the rows of its tables and the content they refer to.

A tar archive: `backup.json` (format, schema revision, time), `tables/<name>.jsonl` (a JSON object for each
row), `blobs/<SHA-256>`. The rows are those of one transaction, taken before the content; content that they
refer to is not deleted for a day after that (`collect.py`), so what the archive refers to is in it although
the registry is in use. It says nothing about where it came from: a backup of a folder restores into
Postgres and S3, and the other way round.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hub_loader.errors import RegistryError, UsageError

from . import migrations
from .blobs import BlobStore
from .collect import content_columns
from .db import Database, restore_rows
from .mirrored import may_be_absent
from .models import Base, Orphan
from .place import Place

FORMAT = 1
_TYPES: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "bytes": base64.b64decode,
}


@dataclass(frozen=True)
class Saved:
    """What a backup holds, and the content that is missing or damaged in the registry and so not in it."""

    rows: int
    blobs: int
    bytes: int
    missing: tuple[str, ...]


def backup(database: Database, blobs: BlobStore, file: Path, now: datetime) -> Saved:
    """Write a backup to `file`, which must be new; it appears when it is complete. Raises UsageError, OSError."""
    if file.exists():
        raise UsageError(f"{file} exists already: name a new file.")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it has secrets
        with os.fdopen(descriptor, "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
                saved = _write(database, blobs, archive, now)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return saved


def _write(database: Database, blobs: BlobStore, archive: tarfile.TarFile, now: datetime) -> Saved:
    rows = 0
    with database.read() as session:
        header = {
            "format": FORMAT,
            "schema": migrations.current(session.connection()),
            "made": now.isoformat(),
        }
        _add(archive, "backup.json", io.BytesIO(json.dumps(header).encode()))
        for table in Base.metadata.sorted_tables:
            if table.name == Orphan.__tablename__:  # what nothing refers to stays behind
                continue
            with tempfile.TemporaryFile() as lines:
                for row in session.execute(select(table).execution_options(yield_per=1000)).mappings():
                    values = {column.name: _encode(row[column.name]) for column in table.columns}
                    lines.write(json.dumps(values).encode() + b"\n")
                    rows += 1
                _add(archive, f"tables/{table.name}.jsonl", lines)
        names = sorted(referred(session))
        optional = may_be_absent(session)
    missing, absent, size = [], 0, 0
    for sha256 in names:
        with tempfile.SpooledTemporaryFile(max_size=16 << 20) as content:
            if not _copy(blobs, sha256, content):
                missing += [sha256] if sha256 not in optional else []
                absent += 1
                continue
            size += _add(archive, f"blobs/{sha256}", content)
    return Saved(rows, len(names) - absent, size, tuple(missing))


def referred(session: Session) -> set[str]:
    """The SHA-256 of all content that the metadata refers to."""
    found: set[str] = set()
    for column in content_columns():
        found |= set(session.scalars(select(column).where(column.is_not(None)).distinct()))
    return found


def _copy(blobs: BlobStore, sha256: str, to: IO[bytes]) -> bool:
    """Whether the content is there and is what its name says."""
    digest = hashlib.sha256()
    try:
        for chunk in blobs.read(sha256):
            digest.update(chunk)
            to.write(chunk)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == sha256


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes]) -> int:
    info = tarfile.TarInfo(name)
    info.size = content.seek(0, os.SEEK_END)
    content.seek(0)
    archive.addfile(info, content)
    return info.size


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return {"json": value} if isinstance(value, (dict, list)) else value


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, text),) = value.items()
    return text if kind == "json" else _TYPES[kind](text)


def restore(place: Place, file: Path) -> Saved:
    """Fill an empty registry from a backup; interrupted, it can be begun again. Raises RegistryError, UsageError."""
    try:
        with tarfile.open(file, "r:") as archive:
            return _restore(place, archive)
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise RegistryError(f"{file} is not a backup, or not a whole one: {error}.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be restored: {error}.") from None


def _restore(place: Place, archive: tarfile.TarFile) -> Saved:
    header = json.load(_member(archive, "backup.json"))
    if header["format"] != FORMAT or header["schema"] not in migrations.revisions():
        raise RegistryError(
            f"This backup was made by a newer registry (format {header['format']}, schema {header['schema']}; "
            f"this one knows {FORMAT} and up to {migrations.head()}): update kernel-hub."
        )
    blobs = BlobStore(place.data, place.storage)
    count = size = rows = 0
    tables: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        folder, _, name = member.name.partition("/")
        if folder == "blobs":
            if blobs.put(_chunks(archive, member)) != name:
                raise RegistryError(f"The content {name} in the backup is damaged: take another backup.")
            count, size = count + 1, size + member.size
        elif folder == "tables":
            tables[name.removesuffix(".jsonl")] = member
    blobs.sync()
    # The content is here: now the metadata, in one transaction.
    read = {name: _rows(archive, member) for name, member in tables.items()}
    rows = restore_rows(place.data, place.database, header["schema"], read)
    return Saved(rows, count, size, ())


def _member(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> IO[bytes]:
    found = archive.extractfile(member)
    if found is None:
        raise KeyError(f"{member} is no file")
    return found


def _chunks(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    content = _member(archive, member)
    while chunk := content.read(1 << 20):
        yield chunk


def _rows(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[dict[str, Any]]:
    for line in _member(archive, member):
        yield {name: _decode(value) for name, value in json.loads(line).items()}
