"""The public functions beside `get_kernel`: kernels of folders, in the cache, and what there is on a hub.

Names, arguments and results are those of the Hub's own client, so that a program changes its import and
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from .config import load_config
from .depends import kernel_depends
from .environment import Environment, detect_environment
from .errors import (
    NoMatchingVariantError,
    RepositoryNotFoundError,
    VersionNotFoundError,
)
from .fetch import fetch_metadata
from .loaded import RepoInfo, load
from .local import find_local
from .manifest import Metadata
from .pinned import make_request, pinned_version
from .policy import Trust
from .request import Request
from .resolver import Decision, best
from .source import (
    HubSource,
    fetch_tree,
    hub_source,
    judge,
    load_tree,
    local_override,
    require,
)
from .trust.bundle_gate import admit_late, admit_variant
from .trust.gate import look
from .variant import Variant, parse_variant

UserAgent = str | Mapping[str, object] | None


@dataclass(frozen=True)
class FetchedKernel:
    """A variant in the cache, verified and not loaded."""

    metadata: Metadata
    repo_info: RepoInfo
    variant: str
    path: Path


@dataclass(frozen=True)
class Explanation:
    """Every variant's verdict at one commit (`revision`); `chosen` is the best, None if none fits.

    `signed` says who has signed it, or why it does not run without trust_remote_code; "" for a folder. `signer` is the
    id of the trusted key.
    """

    repo_id: str
    revision: str
    chosen: str | None
    decisions: tuple[Decision, ...]
    signed: str = ""
    signer: str | None = None


class NamedVariant(Variant):
    """A variant's parsed name with the attribute by which the Hub's own client gives it."""

    @property
    def variant_str(self) -> str:
        """The name."""
        return str(self)


@dataclass(frozen=True)
class VariantAccepted:
    """A variant that fits here."""

    variant: NamedVariant


@dataclass(frozen=True)
class VariantRejected:
    """A variant that does not fit here, and why."""

    variant: NamedVariant
    reason: str


def get_local_kernel(
    repo_path: str | Path,
    *,
    backend: str | None = None,
    trust_remote_code: Trust = None,
    user_agent: UserAgent = None,
) -> ModuleType:
    """Load a kernel from a folder; only what it depends on is asked of the hub.

    Args:
        repo_path: a package folder (index.json and build/), its build folder, or the folder of one variant.
        backend: as for `get_kernel`.
        trust_remote_code: as for `get_kernel`, for its dependencies: the folder itself is yours.
        user_agent: as for `get_kernel`, for its dependencies.

    Raises:
        UsageError: there is no kernel package at `repo_path`.
        NoMatchingVariantError: no variant in it fits this environment.
        IntegrityError: a file is not what its metadata promises.
        InvalidKernelError: the package breaks the format.
        MissingDependencyError: it needs what is not installed here.
    """
    package, variant = find_local(Path(repo_path), detect_environment(), backend)
    try:
        needed = kernel_depends(package.metadata)
        source = (
            hub_source(load_config(user_agent=user_agent), backend, trust_remote_code) if needed else None
        )
        modules = {} if source is None else {kernel.repo_id: load_tree(source, kernel) for kernel in needed}
    except BaseException:
        package.close()
        raise
    return load(package, variant, None, modules)


def install_kernel(
    repo_id: str,
    *,
    revision: str | None = None,
    version: int | None = None,
    backend: str | None = None,
    local_files_only: bool = False,
    user_agent: UserAgent = None,
    trust_remote_code: Trust = None,
) -> Path:
    """Bring the variant that fits, and what it depends on, into the cache, proven; return the variant's folder.

    `local_files_only` sends no request, as HF_HUB_OFFLINE=1 does. The rest is as for `get_kernel`.
    """
    config = load_config(user_agent=user_agent)
    if local_files_only:
        config = replace(config, offline=True)
    source = replace(hub_source(config, backend, trust_remote_code), overrides=None)
    return fetch_tree(source, make_request(repo_id, version, revision)).package.folder


def fetch_kernel(
    repo_id: str,
    *,
    revision: str | None = None,
    version: int | None = None,
    backend: str | None = None,
    trust_remote_code: Trust = None,
) -> FetchedKernel:
    """`install_kernel` that asks the hub where a version has been remembered, and says what it brought."""
    source = replace(hub_source(load_config(), backend, trust_remote_code), overrides=None, fresh=True)
    found = fetch_tree(source, make_request(repo_id, version, revision))
    assert found.repo_info is not None  # nothing is overridden by a folder here
    return FetchedKernel(found.package.metadata, found.repo_info, found.variant, found.package.folder)


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
    request, config = make_request(repo_id, version, revision), load_config()
    found = pinned_version(config, request, fresh=True)
    decisions = judge(config, request, found, environment or detect_environment(), backend)
    verdict = look(config, found)
    signer = None if verdict.signer is None else verdict.signer.id
    return Explanation(repo_id, found.commit, best(decisions), decisions, verdict.reason, signer)


def get_kernel_variants(
    repo_id: str, *, revision: str | None = None, version: int | None = None, backend: str | None = None
) -> list[VariantAccepted | VariantRejected]:
    """`explain` as the Hub's own client answers: the variants that fit, best first, then the others."""
    return [
        VariantAccepted(_named(decision.variant))
        if decision.accepted
        else VariantRejected(_named(decision.variant), decision.reason)
        for decision in explain(repo_id, revision=revision, version=version, backend=backend).decisions
    ]


def has_kernel(
    repo_id: str,
    *,
    revision: str | None = None,
    version: int | None = None,
    backend: str | None = None,
    trust_remote_code: Trust = None,
    check_arch: bool = True,
) -> bool:
    """Whether the repository, the version and a variant that fits exist, and so for what it depends on.

    Loads and fetches no variant. Python packages that are missing do not count.

    Raises:
        PolicyError: `trust_remote_code` does not allow it.
        KernelHubError: the hub failed, or a manifest is malformed.
    """
    source = hub_source(load_config(), backend, trust_remote_code, check_arch=check_arch)
    try:
        return _exists(source, make_request(repo_id, version, revision), ())
    except (RepositoryNotFoundError, VersionNotFoundError, NoMatchingVariantError):
        return False


def _exists(source: HubSource, request: Request, above: tuple[Request, ...]) -> bool:
    local = local_override(source.overrides, request.repo_id)
    if local is not None:
        package, _ = find_local(local, source.environment, source.backend)
        package.close()
        metadata = package.metadata
    else:
        version = pinned_version(source.config, request)
        late = admit_late(source.config, source.policy, version)
        chosen = require(request, judge(source.config, request, version, source.environment, source.backend))
        if late:
            admit_variant(source.config, request, version, chosen)
        metadata = fetch_metadata(source.config, request, version, chosen)
    needed = kernel_depends(metadata)
    if any(kernel in (*above, request) for kernel in needed):
        return False
    return all(_exists(source, kernel, (*above, request)) for kernel in needed)


def _named(name: str) -> NamedVariant:
    return NamedVariant(**vars(parse_variant(name)))
