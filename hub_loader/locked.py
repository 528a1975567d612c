"""Locked kernels: what `kernels.lock` names is loaded, and nothing else.

The variants at the locked commit must be those of the lock, byte for byte, whichever hub or cache they come
from; where everything is in the cache, no request is sent. A lock without digests, as the Hub's own client
writes it, holds the commit alone.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from .cache_folder import read
from .config import Config, load_config
from .environment import Environment, detect_environment
from .errors import IntegrityError, LockError
from .kernels import UserAgent
from .loaded import lock
from .lockfile import LOCK_NAME, KernelLock, LockFile, parse_lock
from .manifest import INDEX_NAME
from .pin import Version, cached_version, version_at
from .policy import Policy, Trust, make_policy
from .request import Request
from .source import Found, fetch_verified, judge, load_tree, require
from .store import LISTING_NAME, LOCKED, Store
from .trust.bundle_gate import admit_late, admit_variant
from .trust.dsse import ENVELOPE_NAME
from .trust.gate import check_signer
from .trust.locked_gate import check_known

ALLOW_LOCKED = Policy(everything=True)


@dataclass(frozen=True)
class LockedSource:
    """The kernels of a lock file, with a policy of their own: locking a kernel is allowing it."""

    config: Config
    environment: Environment
    lock_file: LockFile
    backend: str | None = None
    policy: Policy = ALLOW_LOCKED

    def find(self, request: Request) -> Found:
        """As `Source.find`.

        Raises:
            LockError: the kernel is not locked with this version or revision.
            SignatureError: it is not signed by the key of the lock, that key is revoked, or a hub's TUF metadata on
                this machine says that it was taken back.
            IntegrityError: the hub or the cache has other bytes than the lock names.
        """
        kernel = self.lock_file.get(request)
        version = locked_version(self.config, kernel, self.lock_file.origin)
        if kernel.variants:
            check_signer(self.config, version, kernel.signer, self.lock_file.origin)
        check_known(self.config, version, self.lock_file.origin)
        asks = not kernel.variants or not self.policy.everything
        late = asks and admit_late(self.config, self.policy, version)
        chosen = require(request, judge(self.config, request, version, self.environment, self.backend))
        if late:
            admit_variant(self.config, request, version, chosen)
        return fetch_locked(self.config, kernel, version, chosen, self.lock_file.origin)


def load_kernel(
    repo_id: str, *, lockfile: str | Path | None = None, backend: str | None = None
) -> ModuleType:
    """Load a locked kernel from the cache; never sends a request.

    Args:
        repo_id: org/name, as the lock file has it.
        lockfile: the path of `kernels.lock`, or of its folder; None takes the one that is part of the installed
            package whose code calls.
        backend: as for `get_kernel`.

    Raises:
        LockError: there is no lock file, or it does not have the kernel.
        OfflineError: it is not in the cache; `khub sync` brings it there.
        IntegrityError: the cache has other bytes than the lock names.
        KernelHubError: as `get_kernel`.
    """
    config = replace(load_config(), offline=True)
    return _load(repo_id, find_lock(lockfile), config, backend, ALLOW_LOCKED)


def get_locked_kernel(
    repo_id: str,
    *,
    lockfile: str | Path | LockFile | None = None,
    trust_remote_code: Trust = None,
    user_agent: UserAgent = None,
) -> ModuleType:
    """`load_kernel` that downloads what is not in the cache, at the locked commit, proven by the lock.

    `trust_remote_code` None lets every locked kernel run: `khub lock` has asked, and the lock says which bytes
    were meant. False and a list are enforced as `get_kernel` does.
    """
    config = load_config(user_agent=user_agent)
    policy = make_policy(True if trust_remote_code is None else trust_remote_code, public=config.is_public)
    return _load(repo_id, find_lock(lockfile), config, None, policy)


def find_lock(path: str | Path | LockFile | None) -> LockFile:
    """Read the lock file at `path`, a file or its folder, unless that is done; None: the one of the calling package.

    Raises:
        LockError: there is none, or it is malformed.
    """
    if isinstance(path, LockFile):
        return path
    if path is None:
        found = caller_lock()
        if found is None:
            raise LockError(
                f"{_caller() or 'the caller'} is no installed package with a {LOCK_NAME}: pass lockfile=, "
                "or run `khub lock` and reinstall the package"
            )
        return found
    file = Path(path)
    file = file / LOCK_NAME if file.is_dir() else file
    try:
        data = file.read_bytes()
    except OSError as error:
        raise LockError(f"{file} cannot be read ({error.strerror}): run `khub lock {file.parent}`") from None
    return parse_lock(data, origin=str(file))


def locked_version(config: Config, kernel: KernelLock, origin: str) -> Version:
    """The locked commit's variants, held against the lock; from the cache, whichever hub filled it, or the hub.

    Raises:
        IntegrityError: the variants are not those of the lock.
        LockError: the repository has moved.
        KernelHubError: as `version_at`.
    """
    request, store = kernel.request, Store(config.cache)
    if kernel.variants:
        cached = cached_version(config, request.repo_id, kernel.commit, LOCKED)
        if isinstance(cached, Version):
            _check(kernel, cached, origin, f"the cache {config.cache}")
            return cached
    found = version_at(config, request, request.repo_id, kernel.commit)
    if not isinstance(found, Version):
        raise LockError(f"{request.repo_id} has moved to {found[0]}: depend on that, and run `khub lock`")
    if kernel.variants:
        try:
            _check(kernel, found, origin, config.endpoint)
        except IntegrityError:
            store.forget_index(config.endpoint, found.repo_id, kernel.commit)  # what lied may be asked again
            raise
        for name in (ENVELOPE_NAME, INDEX_NAME, LISTING_NAME):
            data = read(store.index_path(config.endpoint, found.repo_id, kernel.commit, name))
            if data is not None:
                store.remember_index(LOCKED, request.repo_id, kernel.commit, data, name)
    return found


def fetch_locked(config: Config, kernel: KernelLock, version: Version, name: str, origin: str) -> Found:
    """A locked variant in the cache, proven against the lock. Raises as `fetch_verified`, and IntegrityError."""
    found = fetch_verified(config, kernel.request, version, name)
    if kernel.variants and found.package.digest != (wanted := kernel.variants[name].manifest):
        found.package.close()
        raise IntegrityError(
            f"{found.package.folder}: metadata.json has sha256 {found.package.digest}, {origin} wants {wanted}"
        )
    return found


def _check(kernel: KernelLock, version: Version, origin: str, where: str) -> None:
    found = {name: variant.key for name, variant in version.variants.items()}
    wanted = {name: variant.key for name, variant in kernel.variants.items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise IntegrityError(
                f"{kernel.request.repo_id} at {kernel.commit[:12]}: {where} has the variant {name} as "
                f"{found.get(name, 'nothing')}, {origin} wants {wanted.get(name, 'nothing')}: do not use it; "
                "if the change is meant, run `khub lock`"
            )


_modules: dict[Hashable, ModuleType] = {}


def _load(
    repo_id: str, lock_file: LockFile, config: Config, backend: str | None, policy: Policy
) -> ModuleType:
    kernel = lock_file.find(repo_id)
    key = (lock_file.digest, repo_id, backend, policy)
    with lock:
        if key not in _modules:
            source = LockedSource(config, detect_environment(), lock_file, backend, policy)
            _modules[key] = load_tree(source, kernel.request)
        return _modules[key]


def caller_lock() -> LockFile | None:
    """The `kernels.lock` in the metadata of the installed package whose code called into this one, if it has one."""
    from importlib.metadata import distribution, packages_distributions  # slow to import, rarely needed

    for name in packages_distributions().get(_caller(), []):
        text = distribution(name).read_text(LOCK_NAME)
        if text is not None:
            return parse_lock(text.encode(), origin=f"{LOCK_NAME} of {name}")
    return None


def _caller() -> str:
    """The top-level name of the package whose code called into this one; "" for none."""
    ours, frame = __name__.partition(".")[0], sys._getframe()
    while True:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("", ours):
            return package
        if frame.f_back is None:
            return ""
        frame = frame.f_back
