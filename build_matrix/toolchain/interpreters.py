"""The CPython interpreters of this machine, by version."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Interpreter:
    """A CPython 3: its program and minor version, e.g. 11 for 3.11."""

    path: Path
    minor: int

    @property
    def version(self) -> str:
        return f"3.{self.minor}"


def find_interpreter(oldest: int, newest: int) -> Interpreter | None:
    """The running interpreter if its minor version is in the range, else the newest on PATH that is; None without."""
    if oldest <= sys.version_info.minor <= newest:
        return Interpreter(Path(sys.executable), sys.version_info.minor)
    for minor in range(newest, oldest - 1, -1):
        if (path := _on_path(minor)) is not None:
            return Interpreter(path, minor)
    return None


def _on_path(minor: int) -> Path | None:
    """A program `python3.<minor>` that runs; version managers leave names on PATH that do not."""
    found = shutil.which(f"python3.{minor}")
    if found is None:
        return None
    done = subprocess.run(
        [found, "-S", "-c", "import sys; print(sys.version_info.minor)"], capture_output=True, text=True
    )
    return Path(found) if done.stdout.strip() == str(minor) else None
