"""What is bound in this process, and the lock under which that changes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from .bind import bind
from .manifest import Metadata
from .record import Record
from .verify import VerifiedPackage

# Held while a kernel is looked up and bound; reentrant, for a kernel may load another while it is imported.
lock = threading.RLock()


class RepoInfo(Record):
    """Where a kernel came from: repository and commit."""

    repo_id: str
    revision: str


class LoadedKernel(Record):
    """A kernel bound in this process; `repo_info` is None for one loaded from a local folder."""

    metadata: Metadata
    module: ModuleType
    repo_info: RepoInfo | None
    variant: str
    path: Path


_loaded: dict[str, LoadedKernel] = {}


def load(
    package: VerifiedPackage,
    variant: str,
    repo_info: RepoInfo | None,
    dependencies: Mapping[str, ModuleType] | None = None,
) -> ModuleType:
    """Bind a verified package and remember it under its id; `dependencies` are as for `bind`.

    Raises:
        InvalidKernelError, MissingDependencyError: as `bind`.
    """
    with lock:
        module = bind(package, dependencies)
        kernel = LoadedKernel(package.metadata, module, repo_info, variant, package.folder)
        _loaded.setdefault(package.metadata.id, kernel)
        return module


def get_loaded_kernels() -> list[LoadedKernel]:
    """The kernels bound in this process, in the order they were loaded."""
    with lock:
        return list(_loaded.values())
