"""Ship a project's `kernels.lock` inside its package, where `load_kernel(…, lockfile=None)` finds it.

setuptools calls this, by the entry point "kernels.lock" in the group egg_info.writers, for every project that
has kernel-hub in `build-system.requires`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import LockError
from .lockfile import LOCK_NAME, parse_lock
from .project import read_dependencies


def write_lock(command: Any, basename: str, filename: str) -> None:
    """Copy the lock file of the project in the working directory into its metadata.

    Args:
        command: setuptools' egg_info command; `basename` and `filename` are where the copy goes.

    Raises:
        LockError: the project depends on kernels, and its lock file is missing or malformed.
    """
    if not any(line.strip().startswith("[tool.kernels") for line in _lines(Path("pyproject.toml"))):
        return
    read_dependencies(Path())
    try:
        data = Path(LOCK_NAME).read_bytes()
    except OSError as error:
        raise LockError(f"{LOCK_NAME} cannot be read ({error.strerror}): run `khub lock`") from None
    parse_lock(data, origin=LOCK_NAME)
    command.write_or_delete_file(basename, filename, data.decode())


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
