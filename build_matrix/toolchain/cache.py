"""A folder of toolchain parts, each under a name that holds a digest of what made it.

A part is made in a temporary folder and renamed into place, so one that exists is whole: an interrupted
download or a killed process leaves nothing that a later run could mistake for a part. The digest of what was
made is kept beside it, so that what happens to it afterwards can be found (`khub matrix verify`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from .pins import Pins, read_lock
from .traffic import Traffic

_STALE_SECONDS = 24 * 3600
_PART = re.compile(r"[^.].*-[0-9a-f]{12}")


class State(Enum):
    """What re-hashing a part says. UNKNOWN: nobody kept a digest when it was made."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"


def default_root() -> Path:
    """`KHUB_TOOLCHAINS`, else `kernel-hub/toolchains` in the user's cache folder."""
    if root := os.environ.get("KHUB_TOOLCHAINS"):
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kernel-hub" / "toolchains"


class ToolchainCache:
    """Parts by name and key; `provide` makes what is missing.

    What is fetched to make them is checked against `pins`, the committed lock unless told otherwise. Files
    fetched whole are kept in `downloads` for a day, so that an interrupted download is continued. `traffic`
    counts what is fetched through this object.
    """

    def __init__(self, root: Path | None = None, pins: Pins | None = None) -> None:
        self.root = root or default_root()
        self.pins = pins or read_lock()
        self.downloads = self.root / "downloads"
        self.traffic = Traffic()

    def provide(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of part `name`, made by `make(folder)` unless one with the same `key` exists.

        `key` says everything the content depends on. When two processes make the same part, one wins and
        the other's work is dropped.
        """
        final = self.path(name, key)
        if final.is_dir():
            return final
        self.root.mkdir(parents=True, exist_ok=True)
        self._drop_stale()
        staging = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        try:
            # In a folder inside: packages set the times of what they are unpacked into, and another process
            # would take one from years ago for left behind.
            part = staging / "part"
            part.mkdir()
            make(part)
            digest = digest_of_files(part)
            try:
                part.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
            else:
                self._keep_digest(final, digest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return final

    def digest(self, inside: Path) -> tuple[str, str]:
        """Name and SHA-256 of the part that `inside` lies in, over the paths and bytes of all its files.

        Parts never change, so the digest is worked out once and kept beside the part.
        """
        part = self.root / inside.relative_to(self.root).parts[0]
        kept = self._kept(part)
        if not kept.is_file():  # made before digests were kept, or by a process killed just then
            self._keep_digest(part, digest_of_files(part))
        return part.name.rpartition("-")[0], kept.read_text()

    def verify(self) -> Iterator[tuple[str, State]]:
        """Re-hash every part: its folder's name, and whether it is what was made."""
        for part in sorted(self.root.glob("*-*")):
            if _PART.fullmatch(part.name) and part.is_dir():
                kept = self._kept(part)
                if not kept.is_file():
                    yield part.name, State.UNKNOWN
                else:
                    same = digest_of_files(part) == kept.read_text()
                    yield part.name, State.WHOLE if same else State.DAMAGED

    def remove(self, part: str) -> None:
        """Remove the part whose folder is called `part`; the next that needs it makes it anew."""
        self._kept(self.root / part).unlink(missing_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.root))
        (self.root / part).rename(aside / part)  # at once: nobody finds half a part
        shutil.rmtree(aside)

    def path(self, name: str, key: str) -> Path:
        """Where the part lies or will lie."""
        return self.root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _kept(self, part: Path) -> Path:
        """Where the digest of a part lies."""
        return self.root / f"{part.name}.sha256"

    def _keep_digest(self, part: Path, digest: str) -> None:
        with tempfile.NamedTemporaryFile("w", prefix=".tmp-", dir=self.root, delete=False) as file:
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(self._kept(part))

    def _drop_stale(self) -> None:
        """Remove what a killed process left behind, and what was downloaded, a day or more ago."""
        for path in (*self.root.glob(".tmp-*"), *self.downloads.glob("*")):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def digest_of_files(folder: Path) -> str:
    """SHA-256 over the paths below `folder` and the SHA-256 of each file's content."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
