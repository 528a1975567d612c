"""Read an archive of `export.py` member by member, each checked against its manifest before it counts."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from typing import Any

from hub_loader.errors import IntegrityError, RegistryError

from .export import FORMATS, MANIFEST, Member
from .names import check_sha256

_MOST_MANIFEST = 256 << 20
_CHUNK = 1 << 20
_FOLDERS = ("repos", "tuf", "blobs")  # in this order


class Archive:
    """The members of an archive, in the manifest's order and as the manifest describes them."""

    def __init__(self, archive: tarfile.TarFile, digest: str | None) -> None:
        self._archive = archive
        info = self._next(MANIFEST)
        if info.size > _MOST_MANIFEST:
            raise IntegrityError(f"The archive's manifest has {info.size} bytes: it is none.")
        content = b"".join(self._read(info))
        self.digest = hashlib.sha256(content).hexdigest()
        if digest is not None and digest != self.digest:
            raise IntegrityError(f"The archive's manifest has the SHA-256 {self.digest}, not {digest}.")
        self._members = _manifest(content)

    def of(self, folder: str) -> list[Member]:
        """The members whose names begin with `folder`."""
        return [member for member in self._members if member.name.startswith(folder)]

    def take(self, member: Member) -> Iterator[bytes]:
        """The next member, which has to be this one, in pieces; raises IntegrityError before the last is given."""
        info = self._next(member.name)
        if info.size != member.size:
            raise IntegrityError(f"{member.name} has {info.size} bytes in the archive, not {member.size}.")
        digest, last = hashlib.sha256(), b""
        for chunk in self._read(info):
            if last:
                yield last
            digest.update(chunk)
            last = chunk
        if digest.hexdigest() != member.sha256:
            raise IntegrityError(f"{member.name} in the archive is damaged: carry it over again.")
        yield last

    def end(self) -> None:
        """Raises IntegrityError if there is another member."""
        if (more := self._archive.next()) is not None:
            raise IntegrityError(f"The archive has {more.name!r}, which its manifest has not.")

    def _next(self, name: str) -> tarfile.TarInfo:
        info = self._archive.next()
        self._archive.members = []  # type: ignore[attr-defined]  # else it remembers them all
        if info is None:
            raise IntegrityError(f"The archive ends before {name}: carry it over again.")
        if info.name != name or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            raise IntegrityError(f"The archive has {info.name!r} where its manifest has the file {name!r}.")
        return info

    def _read(self, info: tarfile.TarInfo) -> Iterator[bytes]:
        content = self._archive.extractfile(info)
        assert content is not None  # it is a regular file
        left = info.size
        while left > 0 and (chunk := content.read(min(_CHUNK, left))):
            left -= len(chunk)
            yield chunk
        if left:
            raise IntegrityError(f"The archive ends within {info.name}: carry it over again.")


def _manifest(content: bytes) -> list[Member]:
    """Its members: repositories, then lists, then content, none twice. Raises IntegrityError."""
    try:
        document: Any = json.loads(content)
        if document["format"] not in FORMATS:
            raise IntegrityError(
                f"The archive has format {document['format']!r}, this hub knows up to {FORMATS[-1]}: update kernel-hub."
            )
        members = [Member(**member) for member in document["members"]]
        for member in members:
            check_sha256(member.sha256)
            if type(member.size) is not int or member.size < 0:
                raise ValueError(member)
            _check_name(member)
        names = [member.name for member in members]
        folders = [_FOLDERS.index(name.partition("/")[0]) for name in names]
        if len(set(names)) != len(names) or sorted(folders) != folders:
            raise ValueError("the order of the members")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RegistryError) as error:
        raise IntegrityError(
            f"The archive's manifest is not one of `khub registry export`: {error}."
        ) from None
    return members


def _check_name(member: Member) -> None:
    folder, _, rest = member.name.partition("/")
    fits = {
        "repos": rest.endswith(".json"),
        "tuf": rest.endswith(".json") and "/" not in rest,
        "blobs": rest == member.sha256,
    }
    if not fits.get(folder, False):
        raise ValueError(member)
