"""Load kernels: ask, pin, read the index, resolve, fetch, verify, bind. The public functions.

What was loaded once in a process is answered from a table, without a request. Neither version nor revision
means the newest version, chosen at the first call and kept for the life of the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .config import Config, load_config, read_endpoint
from .environment import Environment, detect_environment
from .errors import RepositoryNotFoundError, UsageError, VersionNotFoundError
from .fetch import Request, fetch_variant, find_commit, load_index
from .hub import check_repo_id
from .loaded import RepoInfo, load, lock
from .manifest import BackendInfo, Index, Metadata
from .resolver import Decision, best, choose, resolve
from .verify import VerifiedPackage, verify_package


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


_modules: dict[tuple[str, Request, str | None], ModuleType] = {}
_commits: dict[tuple[str, Request], str] = {}


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
    key = (read_endpoint(), request, backend)
    with lock:
        if key not in _modules:
            commit, variant, package = _fetch_verified(load_config(), request, backend)
            _modules[key] = load(package, variant, RepoInfo(repo_id, commit))
        return _modules[key]


def fetch_kernel(
    repo_id: str, *, revision: str | None = None, version: int | None = None, backend: str | None = None
) -> FetchedKernel:
    """Bring the variant that fits into the cache and verify it, without importing it.

    Arguments and errors are those of `get_kernel`.
    """
    commit, variant, package = _fetch_verified(load_config(), _request(repo_id, version, revision), backend)
    package.close()
    return FetchedKernel(package.metadata, RepoInfo(repo_id, commit), variant, package.folder)


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
    return Explanation(repo_id, commit, best(decisions), decisions)


def has_kernel(
    repo_id: str, *, revision: str | None = None, version: int | None = None, backend: str | None = None
) -> bool:
    """Whether the repository, the version and a variant that fits exist; a hub that fails still raises."""
    try:
        return explain(repo_id, revision=revision, version=version, backend=backend).chosen is not None
    except (RepositoryNotFoundError, VersionNotFoundError):
        return False


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
    with lock:
        if key not in _commits:
            _commits[key] = find_commit(config, request)
        return _commits[key], load_index(config, request, _commits[key])


def _backends(index: Index) -> dict[str, BackendInfo]:
    return {name: variant.backend for name, variant in index.variants.items()}


def _fetch_verified(
    config: Config, request: Request, backend: str | None
) -> tuple[str, str, VerifiedPackage]:
    """Commit, name of the variant that fits best, and its package, in the cache and proven."""
    commit, index = _version(config, request)
    chosen = choose(str(request), detect_environment(), _backends(index), backend)
    variant = index.variants[chosen]
    folder = fetch_variant(config, request, commit, chosen, variant)
    cure = f"delete the folder {folder}, it will be downloaded again"
    return commit, chosen, verify_package(folder, indexed=variant, cure=cure)
