"""Which files of a kernel's folder are its source, and their digest: one answer for builder, publisher and loader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

BUILD_FILE = "build.toml"
# What lies in a kernel's folder without being part of the binary or the package.
_NOT_SOURCE = {"build", "dist", "tests", "benchmarks", "docs", "__pycache__"}


def is_source(path: str) -> bool:
    """Whether builds depend on `path`, relative to the kernel's folder: nothing hidden, no text about it. Pure."""
    inside = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in inside.parts)  # .git, .pytest_cache
    return not hidden and not _NOT_SOURCE.intersection(inside.parts) and inside.suffix != ".md"


def source_files(folder: Path) -> Iterator[Path]:
    """The files of a kernel's folder that its builds depend on, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_source(path.relative_to(folder).as_posix()):
            yield path


def add_sources(digest: hashlib._Hash, folder: Path) -> None:
    """Feed each source's path, NUL, and the SHA-256 of its bytes."""
    for path in source_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())


def source_digest(folder: Path) -> str:
    """SHA-256 (hex) of the sources in `folder`."""
    digest = hashlib.sha256()
    add_sources(digest, folder)
    return digest.hexdigest()
