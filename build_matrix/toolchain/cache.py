"""A folder of toolchain parts, each under a name that holds a digest of what made it.

A part is made in a temporary folder and renamed into place, so one that exists is whole: an interrupted
download or a killed process leaves nothing that a later run could mistake for a part.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .pins import Pins, read_lock

_STALE_SECONDS = 24 * 3600


def default_root() -> Path:
    """`KHUB_TOOLCHAINS`, else `kernel-hub/toolchains` in the user's cache folder."""
    if root := os.environ.get("KHUB_TOOLCHAINS"):
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kernel-hub" / "toolchains"


class ToolchainCache:
    """Parts by name and key; `provide` makes what is missing.

    What is fetched to make them is checked against `pins`, the committed lock unless told otherwise. Files
    fetched whole are kept in `downloads` for a day, so that an interrupted download is continued.
    """

    def __init__(self, root: Path | None = None, pins: Pins | None = None) -> None:
        self.root = root or default_root()
        self.pins = pins or read_lock()
        self.downloads = self.root / "downloads"

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
            try:
                part.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return final

    def digest(self, inside: Path) -> tuple[str, str]:
        """Name and SHA-256 of the part that `inside` lies in, over the paths and bytes of all its files.

        Parts never change, so the digest is worked out once and kept beside the part.
        """
        part = self.root / inside.relative_to(self.root).parts[0]
        kept = self.root / f"{part.name}.sha256"
        if not kept.is_file():
            total = hashlib.sha256()
            for path in sorted(path for path in part.rglob("*") if path.is_file()):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(part).as_posix()} {content}\n".encode())
            with tempfile.NamedTemporaryFile("w", prefix=".tmp-", dir=self.root, delete=False) as file:
                file.write(total.hexdigest())
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(kept)
        return part.name.rpartition("-")[0], kept.read_text()

    def path(self, name: str, key: str) -> Path:
        """Where the part lies or will lie."""
        return self.root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _drop_stale(self) -> None:
        """Remove what a killed process left behind, and what was downloaded, a day or more ago."""
        for path in (*self.root.glob(".tmp-*"), *self.downloads.glob("*")):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
