"""Load kernels: ask, pin, read the index, resolve, fetch, verify, bind. The public functions.

Names, arguments and results are those of the Hub's own client, so that a program changes its import and
nothing else. What was loaded once in a process is answered from a table, without a request. Neither version
nor revision means the newest version, chosen at the first call and kept for the life of the process.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from .config import Config, load_config
from .depends import kernel_depends
from .environment import Environment, detect_environment
from .errors import (
    NoMatchingVariantError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from .fetch import fetch_metadata
from .hub import check_repo_id
from .loaded import RepoInfo, load, lock
from .local import find_local
from .manifest import Metadata
from .policy import Trust, make_policy
from .request import Request
from .resolver import Decision, best
from .source import (
    HubSource,
    fetch_tree,
    judge,
    load_tree,
    local_override,
    pinned_version,
    read_overrides,
    require,
)
from .trust.gate import admit, look
from .variant import Variant, parse_variant

if TYPE_CHECKING:
    from .choose import Workload

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


_modules: dict[Hashable, ModuleType] = {}


def get_kernel(
    repo_id: str,
    *,
    revision: str | None = None,
    version: int | None = None,
    backend: str | None = None,
    user_agent: UserAgent = None,
    trust_remote_code: Trust = None,
    check_arch: bool = True,
    allow_cpu: bool = False,
    allow_build: bool = False,
    choose: Literal["best", "fastest"] = "best",
    workload: Workload | None = None,
    references: Mapping[str, Any] | None = None,
) -> ModuleType:
    """Load the variant of a kernel that fits this environment, and what it depends on; return its module.

    Args:
        repo_id: org/name on the hub that HF_ENDPOINT names. LOCAL_KERNELS can name a folder to load instead.
        revision: a branch, tag or commit hash; not together with `version`.
        version: the kernel's version N, its branch v<N>. Neither: the newest version, or main without one.
        backend: "cuda" or "cpu"; None takes cuda if torch is built for it, else cpu.
        user_agent: text, or names with values, that the User-Agent header says beside this library's name.
        trust_remote_code: whose code may run. True: everybody's. A list: these repositories and publishers that
            the hub vouches for. False: those publishers alone. None: False on the public hub, True on a hub that
            HF_ENDPOINT names. Holds for what the kernel depends on too, and is checked on the repository that
            answers, before any of its code is fetched. What is not checked is a publisher's signature.
        check_arch: False takes a CUDA variant even if no code in it is compiled for the GPU here.
        allow_cpu: where no variant fits the GPU that torch is built for, take one for the CPU. Said as a warning.
        allow_build: where no variant fits at all, compile the source that the repository publishes, with `khub build`,
            which must be installed. Said as a warning; kept for the next time. `get_choices` lists what was taken.
        choose: "best" takes the variant that fits best. "fastest" times those that fit for `workload`, once on a
            device, and takes the fastest; what was measured is in `get_choices` and the log.
        workload: the call to time, for "fastest" alone.
        references: implementations of the caller's own to compare with, by name: modules, or anything that has the
            workload's function. One that is the fastest is what is returned.

    Raises:
        NoMatchingVariantError: no variant fits; the message says why for each.
        IntegrityError: a file in the cache is not what the publisher uploaded.
        PolicyError: `trust_remote_code` does not allow it.
        KernelHubError: one of the other classes of `hub_loader.errors`, for what its docstring says.
    """
    options = (repo_id, version, revision, backend, trust_remote_code, check_arch, allow_cpu, allow_build)
    asked: tuple[object, ...] = options
    question = None
    if choose != "best" or workload is not None or references is not None:
        from .choose import load_fastest, make_question

        question = make_question(choose, workload, references)
        asked = (*options, question.key())
    key = (os.environ.get("HF_ENDPOINT"), os.environ.get("LOCAL_KERNELS"), repr(asked))
    found = _modules.get(key)  # without the lock: a module is put there when it is whole
    if found is not None:
        return found
    request = make_request(repo_id, version, revision)
    with lock:
        if key not in _modules:
            source = _source(load_config(user_agent=user_agent), backend, trust_remote_code, check_arch)
            source = replace(source, allow_cpu=allow_cpu, allow_build=allow_build)
            _modules[key] = (
                load_fastest(source, request, question) if question else load_tree(source, request)
            )
        return _modules[key]


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
        backend, trust_remote_code, user_agent: as for `get_kernel`, the latter two for its dependencies: the
            folder itself is yours.

    Raises:
        UsageError: there is no kernel package at `repo_path`.
        NoMatchingVariantError, IntegrityError, InvalidKernelError, MissingDependencyError
    """
    package, variant = find_local(Path(repo_path), detect_environment(), backend)
    try:
        needed = kernel_depends(package.metadata)
        source = _source(load_config(user_agent=user_agent), backend, trust_remote_code) if needed else None
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
    source = replace(_source(config, backend, trust_remote_code), overrides=None)
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
    source = replace(_source(load_config(), backend, trust_remote_code), overrides=None, fresh=True)
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
    source = _source(load_config(), backend, trust_remote_code, check_arch)
    try:
        return _exists(source, make_request(repo_id, version, revision), ())
    except (RepositoryNotFoundError, VersionNotFoundError, NoMatchingVariantError):
        return False


def make_request(repo_id: str, version: int | None, revision: str | None) -> Request:
    """What the arguments mean. Raises UsageError if they contradict each other or are misspelt."""
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


def _source(
    config: Config, backend: str | None, trust_remote_code: Trust, check_arch: bool = True
) -> HubSource:
    environment = detect_environment()
    if not check_arch:
        environment = replace(environment, compute_capabilities=())
    policy = make_policy(trust_remote_code, public=config.is_public)
    return HubSource(config, environment, policy, backend, read_overrides())


def _exists(source: HubSource, request: Request, above: tuple[Request, ...]) -> bool:
    local = local_override(source.overrides, request.repo_id)
    if local is not None:
        package, _ = find_local(local, source.environment, source.backend)
        package.close()
        metadata = package.metadata
    else:
        version = pinned_version(source.config, request)
        admit(source.config, source.policy, version)
        chosen = require(request, judge(source.config, request, version, source.environment, source.backend))
        metadata = fetch_metadata(source.config, request, version, chosen)
    needed = kernel_depends(metadata)
    if any(kernel in (*above, request) for kernel in needed):
        return False
    return all(_exists(source, kernel, (*above, request)) for kernel in needed)


def _named(name: str) -> NamedVariant:
    return NamedVariant(**vars(parse_variant(name)))
