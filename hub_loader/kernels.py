"""Load kernels: ask, pin, read the index, resolve, fetch, verify, bind. The public functions.

What was loaded once in a process is answered from a table, without a request. Neither version nor revision
means the newest version, chosen at the first call and kept for the life of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .bind import bind
from .config import Config, load_config
from .environment import Environment, detect_environment
from .errors import (
    IntegrityError,
    InvalidKernelError,
    NoMatchingVariantError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from .fetch import Request, check_agreement, fetch_variant, find_commit, load_index
from .hub import check_repo_id
from .manifest import (
    INDEX_NAME,
    METADATA_NAME,
    BackendInfo,
    Index,
    IndexedVariant,
    Metadata,
    parse_index,
    parse_metadata,
)
from .resolver import Decision, resolve
from .variant import parse_variant
from .verify import VerifiedPackage, verify_package


@dataclass(frozen=True)
class RepoInfo:
    """Where a kernel came from: repository and commit."""

    repo_id: str
    revision: str


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel bound in this process; `repo_info` is None for one loaded from a local folder."""

    metadata: Metadata
    module: ModuleType
    repo_info: RepoInfo | None
    variant: str
    path: Path


@dataclass(frozen=True)
class FetchedKernel:
    """A variant in the cache, verified and not loaded."""

    metadata: Metadata
    repo_info: RepoInfo
    variant: str
    path: Path


@dataclass(frozen=True)
class Explanation:
    """Every variant's verdict at one commit (`revision`); `chosen` is the best, None if none fits."""

    repo_id: str
    revision: str
    chosen: str | None
    decisions: tuple[Decision, ...]


_lock = threading.RLock()  # a kernel may load another while it is imported
_modules: dict[tuple[str, Request, str | None], ModuleType] = {}
_commits: dict[tuple[str, Request], str] = {}
_loaded: dict[str, LoadedKernel] = {}


def get_kernel(
    repo_id: str, *, revision: str | None = None, version: int | None = None, backend: str | None = None
) -> ModuleType:
    """Load the variant of a kernel that fits this environment and return its module.

    Args:
        repo_id: org/name on the hub that HF_ENDPOINT names.
        revision: a branch, tag or commit hash; not together with `version`.
        version: the kernel's version N, its branch v<N>. Neither: the newest version.
        backend: "cuda" or "cpu"; None takes cuda if torch is built for it, else cpu.

    Raises:
        NoMatchingVariantError: no variant fits; the message says why for each.
        IntegrityError: a file in the cache is not what the publisher uploaded.
        KernelHubError: one of the other classes of `hub_loader.errors`, for what its docstring says.
    """
    request = _request(repo_id, version, revision)
    config = load_config()
    key = (config.endpoint, request, backend)
    with _lock:
        if key not in _modules:
            commit, index = _version(config, request)
            environment = detect_environment()
            chosen = _choose(str(request), environment, _backends(index), backend)
            package = _fetch_verified(config, request, commit, chosen, index.variants[chosen])
            _modules[key] = _load(package, chosen, RepoInfo(repo_id, commit))
        return _modules[key]


def get_local_kernel(path: str | Path, *, backend: str | None = None) -> ModuleType:
    """Load a kernel from a folder, without a request.

    Args:
        path: a package folder (index.json and build/), its build folder, or the folder of one variant.
        backend: as for `get_kernel`.

    Raises:
        UsageError: there is no kernel package at `path`.
        NoMatchingVariantError, IntegrityError, InvalidKernelError, MissingDependencyError
    """
    folder = Path(path).absolute()
    one = (folder / METADATA_NAME).is_file()
    build = folder.parent if one else folder / "build" if (folder / "build").is_dir() else folder
    index = _local_index(build.parent / INDEX_NAME)
    found = [folder.name] if one else _variant_names(build)
    if not found:
        raise UsageError(f"{folder} holds no kernel: pass a folder with build/<variant>/{METADATA_NAME}")
    indexed: Mapping[str, IndexedVariant] = {} if index is None else index.variants
    for name in found:
        if index is not None and name not in indexed:
            raise IntegrityError(
                f"{build / name} is not in {build.parent / INDEX_NAME}: delete it, or build again"
            )
    backends = {name: _local_backend(build / name) for name in found}
    with _lock:
        chosen = _choose(str(folder), detect_environment(), backends, backend)
        variant = indexed.get(chosen)
        expected = None if variant is None else variant.metadata.sha256
        package = verify_package(
            build / chosen, expected_digest=expected, cure="build or copy the package again"
        )
        if variant is not None:
            check_agreement(package.metadata, variant, str(build / chosen))
        return _load(package, chosen, None)


def fetch_kernel(
    repo_id: str, *, revision: str | None = None, version: int | None = None, backend: str | None = None
) -> FetchedKernel:
    """Bring the variant that fits into the cache and verify it, without importing it.

    Arguments and errors are those of `get_kernel`.
    """
    request, config = _request(repo_id, version, revision), load_config()
    commit, index = _version(config, request)
    chosen = _choose(str(request), detect_environment(), _backends(index), backend)
    package = _fetch_verified(config, request, commit, chosen, index.variants[chosen])
    package.close()
    return FetchedKernel(package.metadata, RepoInfo(repo_id, commit), chosen, package.folder)


def explain(
    repo_id: str,
    *,
    version: int | None = None,
    revision: str | None = None,
    backend: str | None = None,
    environment: Environment | None = None,
) -> Explanation:
    """Say for each variant whether it fits `environment` (None: this one), and why. Downloads no variant.

    Raises:
        KernelHubError: as `get_kernel`, except that no fitting variant is an answer here.
    """
    request = _request(repo_id, version, revision)
    commit, index = _version(load_config(), request)
    decisions = resolve(environment or detect_environment(), _backends(index), backend)
    return Explanation(repo_id, commit, _best(decisions), decisions)


def has_kernel(
    repo_id: str, *, revision: str | None = None, version: int | None = None, backend: str | None = None
) -> bool:
    """Whether the repository, the version and a variant that fits exist; a hub that fails still raises."""
    try:
        return explain(repo_id, revision=revision, version=version, backend=backend).chosen is not None
    except (RepositoryNotFoundError, VersionNotFoundError):
        return False


def get_loaded_kernels() -> list[LoadedKernel]:
    """The kernels bound in this process, in the order they were loaded."""
    with _lock:
        return list(_loaded.values())


def _request(repo_id: str, version: int | None, revision: str | None) -> Request:
    check_repo_id(repo_id)
    if version is not None and revision is not None:
        raise UsageError(
            f"{repo_id}: version={version} and revision={revision!r} are both given: pass one of them"
        )
    if isinstance(version, bool) or not isinstance(version, int | None):
        raise UsageError(
            f"{repo_id}: version={version!r} is not a number: pass revision= for a branch, tag or commit"
        )
    return Request(repo_id, version, revision)


def _version(config: Config, request: Request) -> tuple[str, Index]:
    """Commit and index of a request; the commit stays the same for the life of the process."""
    key = (config.endpoint, request)
    with _lock:
        if key not in _commits:
            _commits[key] = find_commit(config, request)
        return _commits[key], load_index(config, request, _commits[key])


def _backends(index: Index) -> dict[str, BackendInfo]:
    return {name: variant.backend for name, variant in index.variants.items()}


def _best(decisions: tuple[Decision, ...]) -> str | None:
    return decisions[0].variant if decisions and decisions[0].accepted else None


def _choose(
    what: str, environment: Environment, variants: dict[str, BackendInfo], backend: str | None
) -> str:
    decisions = resolve(environment, variants, backend)
    chosen = _best(decisions)
    if chosen is None:
        reasons = "; ".join(f"{decision.variant} {decision.reason}" for decision in decisions)
        raise NoMatchingVariantError(
            f"{what} has no variant that fits here: {reasons or 'it has none at all'}"
        )
    return chosen


def _fetch_verified(
    config: Config, request: Request, commit: str, name: str, variant: IndexedVariant
) -> VerifiedPackage:
    folder = fetch_variant(config, request, commit, name, variant)
    cure = f"delete the folder {folder}, it will be downloaded again"
    package = verify_package(folder, expected_digest=variant.metadata.sha256, cure=cure)
    check_agreement(package.metadata, variant, str(folder / METADATA_NAME))
    return package


def _load(package: VerifiedPackage, variant: str, repo_info: RepoInfo | None) -> ModuleType:
    module = bind(package)
    kernel = LoadedKernel(package.metadata, module, repo_info, variant, package.folder)
    _loaded.setdefault(package.metadata.id, kernel)
    return module


def _local_index(path: Path) -> Index | None:
    return parse_index(path.read_bytes(), origin=str(path)) if path.is_file() else None


def _variant_names(build: Path) -> list[str]:
    if not build.is_dir():
        return []
    return sorted(path.name for path in build.iterdir() if (path / METADATA_NAME).is_file())


def _local_backend(folder: Path) -> BackendInfo:
    try:
        parse_variant(folder.name)
    except ValueError as error:
        raise InvalidKernelError(f"{folder} is not named like a variant: {error}") from None
    path = folder / METADATA_NAME
    return parse_metadata(path.read_bytes(), origin=str(path)).backend
