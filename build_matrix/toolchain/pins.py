"""The lock of toolchains: the SHA-256 of every file they are made of, committed beside the matrix.

A package that is fetched whole has the digest of its file; one of which only some members are read has the
digest of the list of its members' digests. Whatever is not as locked is refused before it is used.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from hub_loader.errors import ToolchainError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCK_FILE = Path(__file__).parents[1] / "toolchains.lock"
_HEADER = """\
# SHA-256 of every file that toolchains are made of. Written by `khub matrix lock`; not to be edited.
# "members of …": the digest over the sorted digests and names of the members read out of a wheel.
"""


class Pins(Protocol):
    """Says whether what was fetched is what was meant."""

    def expected(self, name: str) -> str | None:
        """The SHA-256 that `name` must have, None where nothing is known of it."""

    def check(self, name: str, sha256: str) -> None:
        """Accept the file or list of members `name`, whose digest is `sha256`.

        Raises:
            ToolchainError: it is not as locked, or not locked at all.
        """


class Lock:
    """The digests of `toolchains.lock`; what is not there is refused."""

    def __init__(self, digests: Mapping[str, str], path: Path = LOCK_FILE) -> None:
        self._digests = digests
        self._path = path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._digests)

    def expected(self, name: str) -> str | None:
        return self._digests.get(name)

    def check(self, name: str, sha256: str) -> None:
        expected = self.expected(name)
        if expected is None:
            raise ToolchainError(
                f"{name} is not in {self._path.name}: lock it with `khub matrix lock`, or use the matrix's versions"
            )
        if expected != sha256:
            raise ToolchainError(
                f"{name} has the SHA-256 {sha256}, {self._path.name} expects {expected}: the index or mirror "
                "serves another file; use another one"
            )


class Recorder:
    """Accepts everything and remembers it: how the lock is written."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    def expected(self, name: str) -> str | None:
        return None

    def check(self, name: str, sha256: str) -> None:
        self.digests[name] = sha256


def read_lock(path: Path = LOCK_FILE) -> Lock:
    """Read the lock. It ships with the package, so a malformed one is a defect, not an input error."""
    return Lock(tomllib.loads(path.read_text(encoding="utf-8"))["sha256"], path)


def write_lock(digests: Mapping[str, str], path: Path = LOCK_FILE) -> None:
    """Replace the lock, sorted by name, whole or not at all."""
    lines = [f'"{name}" = "{sha256}"\n' for name, sha256 in sorted(digests.items())]
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines([_HEADER, "\n[sha256]\n", *lines])
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def digest_of_members(members: Iterable[tuple[str, bytes]]) -> str:
    """One digest for some members of an archive, whatever their order: of sorted lines "<sha256>  <name>"."""
    lines = sorted(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in members)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
