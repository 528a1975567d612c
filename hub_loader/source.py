"""Where kernels come from: a hub, a folder, a folder instead of a hub. And loading one with all it depends on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Protocol

from .config import Config
from .depends import kernel_depends
from .environment import Environment, detect_environment
from .errors import InvalidKernelError, NoMatchingVariantError, UsageError
from .fallback import Choice, fall_back, record
from .fetch import fetch_metadata, fetch_variant
from .hub import check_repo_id
from .listing import SIGNATURE_NAME, backend_of
from .loaded import RepoInfo, load
from .local import find_local
from .manifest import METADATA_NAME, BackendInfo, IndexedVariant
from .pin import Version
from .pinned import pinned_version
from .policy import Policy, Trust, make_policy
from .record import Record
from .request import Request
from .resolver import Decision, best, resolve
from .trust.bundle_gate import admit_late, admit_variant
from .trust.bundles import check_form
from .trust.gate import admit_source
from .verify import VerifiedPackage, verify_package

logger = logging.getLogger("hub_loader")


class Found(Record):
    """A variant in the cache or in a folder, proven and not loaded; `repo_info` is None for a folder."""

    package: VerifiedPackage
    variant: str
    repo_info: RepoInfo | None


class Source(Protocol):
    """Finds kernels; what a kernel depends on comes from the same source."""

    def find(self, request: Request) -> Found:
        """The variant that fits best, proven. Raises KernelHubError."""


class HubSource(Record):
    """The hub of `config`, or the folders that LOCAL_KERNELS names instead."""

    config: Config
    environment: Environment
    policy: Policy
    backend: str | None = None
    overrides: Mapping[str, Path] | None = None
    fresh: bool = False
    allow_cpu: bool = False
    allow_build: bool = False

    def find(self, request: Request) -> Found:
        """As `Source.find`; what the policy does not allow is refused before any of its code is fetched."""
        local = local_override(self.overrides, request.repo_id)
        if local is not None:
            return Found(*find_local(local, self.environment, self.backend), None)
        version, choice = self.choose(request)
        if choice.variant is None:
            return self.build(request, version, choice)
        record(choice, version.commit)
        return fetch_verified(self.config, request, version, choice.variant)

    def choose(self, request: Request) -> tuple[Version, Choice]:
        """What is to be taken, of which version; fetches no variant. Raises as `find`."""
        version = pinned_version(self.config, request, fresh=self.fresh)
        late = admit_late(self.config, self.policy, version, fresh=self.fresh)
        choice = fall_back(
            str(request),
            self.environment,
            lambda backend: judge(self.config, request, version, self.environment, backend),
            self.backend,
            allow_cpu=self.allow_cpu,
            allow_build=self.allow_build,
        )
        if late and choice.variant is not None:
            admit_variant(self.config, request, version, choice.variant)
        return version, choice

    def build(self, request: Request, version: Version, choice: Choice) -> Found:
        """Compile what the version publishes as source.

        Raises:
            IntegrityError: that is not what its variants were built from.
            PolicyError: no variant says what it was built from, and the caller does not allow this repository.
            KernelHubError: as `published_source` and `build_kernel`.
        """
        from .published_source import published_source
        from .source_build import build_kernel, check_source, stated_sources

        # What vouches for the variants vouches for the source that they state.
        stated = stated_sources(fetch_metadata(self.config, request, version, n) for n in version.variants)
        if not stated:
            admit_source(self.config, self.policy, version)
        source = published_source(self.config, version.repo_id, version.commit)
        if stated:
            check_source(str(request), source, stated)
        built = build_kernel(str(request), source, self.environment, self.backend, self.config.cache)
        record(replace(choice, variant=built.variant), version.commit)
        return Found(built.verify(), built.variant, RepoInfo(version.repo_id, version.commit))


def hub_source(
    config: Config,
    backend: str | None,
    trust_remote_code: Trust,
    *,
    check_arch: bool = True,
    allow_cpu: bool = False,
    allow_build: bool = False,
) -> HubSource:
    """The hub that `config` names, as this process may use it. Raises UsageError for arguments that mean nothing."""
    environment = detect_environment()
    if not check_arch:
        environment = replace(environment, compute_capabilities=())
    policy = make_policy(trust_remote_code, public=config.is_public)
    return HubSource(
        config,
        environment,
        policy,
        backend,
        read_overrides(),
        allow_cpu=allow_cpu,
        allow_build=allow_build,
    )


def judge(
    config: Config, request: Request, version: Version, environment: Environment, backend: str | None
) -> tuple[Decision, ...]:
    """Each variant's verdict, best first.

    Without an index the architectures of a variant are in its metadata.json, which is read, one request each,
    of those variants alone that would be chosen.
    """
    infos: dict[str, BackendInfo] = {
        name: variant.backend if isinstance(variant, IndexedVariant) else backend_of(name)
        for name, variant in version.variants.items()
    }
    asked = {name for name, variant in version.variants.items() if isinstance(variant, IndexedVariant)}
    while True:
        decisions = resolve(environment, infos, backend)
        chosen = best(decisions)
        if chosen is None or chosen in asked:
            return decisions
        infos[chosen] = fetch_metadata(config, request, version, chosen).backend
        asked.add(chosen)


def require(request: Request, decisions: tuple[Decision, ...]) -> str:
    """The best variant. Raises NoMatchingVariantError with the reason for each if none fits."""
    chosen = best(decisions)
    if chosen is None:
        reasons = "; ".join(f"{decision.variant} {decision.reason}" for decision in decisions)
        raise NoMatchingVariantError(
            f"{request} has no variant that fits here: {reasons or 'it has none at all'}"
        )
    return chosen


def fetch_verified(config: Config, request: Request, version: Version, name: str) -> Found:
    """A variant in the cache, proven against the index or listing of its version. Raises as its two halves do."""
    folder = fetch_variant(config, request, version, name)
    cure = f"delete the folder {folder}, it will be downloaded again"
    package = verify_package(folder, indexed=version.variants[name], cure=cure)
    bundle = package.contents.get(SIGNATURE_NAME)
    if bundle is not None:  # whoever is trusted: what says that it signs this, and does not, is refused
        try:
            check_form(bundle, package.contents[METADATA_NAME], origin=str(folder / SIGNATURE_NAME))
        except BaseException:
            package.close()
            raise
    return Found(package, name, RepoInfo(version.repo_id, version.commit))


def load_tree(source: Source, request: Request, above: tuple[Request, ...] = ()) -> ModuleType:
    """Load a kernel, after all that it depends on.

    Raises:
        InvalidKernelError: a kernel depends on itself.
        KernelHubError: as `Source.find` and `load`.
    """
    found = source.find(request)
    try:
        modules = {
            needed.repo_id: load_tree(source, needed, (*above, request))
            for needed in _needed(found, request, above)
        }
    except BaseException:
        found.package.close()
        raise
    return load(found.package, found.variant, found.repo_info, modules)


def fetch_tree(source: Source, request: Request, above: tuple[Request, ...] = ()) -> Found:
    """Bring a kernel and all that it depends on into the cache, proven and not loaded. Raises as `load_tree`."""
    found = source.find(request)
    found.package.close()
    for needed in _needed(found, request, above):
        fetch_tree(source, needed, (*above, request))
    return found


def _needed(found: Found, request: Request, above: tuple[Request, ...]) -> tuple[Request, ...]:
    needed = kernel_depends(found.package.metadata)
    for kernel in needed:
        if kernel in (*above, request):
            chain = " needs ".join(str(link) for link in (*above, request, kernel))
            raise InvalidKernelError(f"kernels depend on each other: {chain}: tell the publishers")
    return needed


def read_overrides(environ: Mapping[str, str] | None = None) -> dict[str, Path]:
    """LOCAL_KERNELS: folders to load instead of repositories, written org/name=/path:org/other=/path.

    Raises:
        UsageError: it is written otherwise.
    """
    value = (os.environ if environ is None else environ).get("LOCAL_KERNELS", "")
    overrides = {}
    for entry in value.split(":") if value else []:
        repo_id, equals, path = entry.partition("=")
        if not equals or not path:
            raise UsageError(f"LOCAL_KERNELS={value!r}: write org/name=/path, more of them after a colon")
        check_repo_id(repo_id)
        overrides[repo_id] = Path(path).expanduser().absolute()
    return overrides


def local_override(overrides: Mapping[str, Path] | None, repo_id: str) -> Path | None:
    """The folder to load instead of a repository, if there is one; that it is used is logged."""
    path = (overrides or {}).get(repo_id)
    if path is not None:
        logger.warning("%s: LOCAL_KERNELS has it loaded from %s", repo_id, path)
    return path
