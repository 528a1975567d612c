"""Lock a project's kernels, and bring what is locked into a cache: `khub lock` and `khub sync`."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import Config
from .depends import kernel_depends
from .environment import Environment
from .errors import InvalidKernelError, LockError
from .fetch import fetch_metadata, read_metadata
from .hub import check_repo_id
from .listing import ListedVariant
from .locked import LockedSource, fetch_locked, locked_version
from .lockfile import LOCK_NAME, KernelLock, LockFile, VariantLock
from .manifest import sha256_hex
from .pin import Version, open_version
from .policy import Policy
from .request import Request
from .source import Found, fetch_tree
from .toml import load_toml
from .trust.bundle_gate import admit_late, admit_variant
from .trust.gate import admit

_PARALLEL_REQUESTS = 8


@dataclass(frozen=True)
class SyncedVariant:
    """A locked variant in the cache, proven; `size` in bytes."""

    repo_id: str
    commit: str
    variant: str
    size: int
    path: str


def read_dependencies(folder: Path) -> tuple[Request, ...]:
    """The kernels in [tool.kernels.dependencies] of a project: a version, or in quotes a revision, by repository.

    Raises:
        LockError: there is no pyproject.toml, or no such table, or it is malformed.
    """
    path = folder / "pyproject.toml"
    try:
        data: Any = load_toml(path.read_text())
    except FileNotFoundError:
        raise LockError(
            f"there is no {path}: pass the project's folder, or write one with "
            '[tool.kernels.dependencies] and "org/name" = 1 below it'
        ) from None
    except OSError as error:
        raise LockError(f"{path} cannot be read ({error.strerror}): pass the project's folder") from None
    except ValueError as error:
        raise LockError(f"{path} is not TOML: {error}") from None
    for name in ("tool", "kernels", "dependencies"):
        data = data.get(name) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not data:
        raise LockError(f'{path} has no [tool.kernels.dependencies]: write "org/name" = 1 below it')
    return tuple(_dependency(path, repo_id, pin) for repo_id, pin in data.items())


def lock_kernels(config: Config, requests: tuple[Request, ...], policy: Policy) -> LockFile:
    """What the hub has now of these kernels and of all that any of their variants depends on.

    Downloads the metadata.json of every variant, and nothing else.

    Raises:
        PolicyError: the policy does not allow one of them.
        InvalidKernelError: they depend on each other.
        KernelHubError: as `open_version`.
    """
    locks: dict[Request, KernelLock] = {}

    def add(request: Request, above: tuple[Request, ...]) -> None:
        if request in above:
            raise InvalidKernelError(
                f"kernels depend on each other: {' needs '.join(map(str, (*above, request)))}"
            )
        if request not in locks:
            kernel = _lock(config, policy, request)
            for needed in kernel.depends:
                add(needed, (*above, request))
            locks[request] = kernel

    for request in requests:
        add(request, ())
    return LockFile(tuple(locks.values()), LOCK_NAME)


def write_lock(folder: Path, lock_file: LockFile, *, stock: bool = False) -> Path:
    """Write `kernels.lock` into a folder, whole or not at all. Raises LockError if it cannot be written."""
    path = folder / LOCK_NAME
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{LOCK_NAME}-", delete=False) as file:
            file.write(lock_file.to_json(stock=stock))
            os.fchmod(file.fileno(), 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise LockError(f"{path} cannot be written ({error.strerror})") from None
    return path


def sync(
    config: Config, environment: Environment, lock_file: LockFile, *, backend: str | None, all_variants: bool
) -> list[SyncedVariant]:
    """Bring into the cache, and prove, the variants that fit here or all that are locked.

    Raises:
        NoMatchingVariantError: a kernel has none that fits here.
        IntegrityError: the hub or the cache has other bytes than the lock names.
        KernelHubError: as `get_kernel`.
    """
    found: dict[tuple[Request, str], Found] = {}
    if all_variants:
        for kernel in lock_file.kernels:
            version = locked_version(config, kernel, lock_file.origin)
            for name in version.variants:
                one = fetch_locked(config, kernel, version, name, lock_file.origin)
                one.package.close()
                found[kernel.request, name] = one
    else:
        source = _Recording(LockedSource(config, environment, lock_file, backend), found)
        for kernel in lock_file.roots:
            fetch_tree(source, kernel.request)
    return [_synced(request, one) for (request, _), one in found.items()]


@dataclass(frozen=True)
class _Recording:
    """A source that remembers what it found."""

    source: LockedSource
    found: dict[tuple[Request, str], Found]

    def find(self, request: Request) -> Found:
        one = self.source.find(request)
        self.found[request, one.variant] = one
        return one


def _synced(request: Request, found: Found) -> SyncedVariant:
    folder = found.package.folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    commit = found.repo_info.revision if found.repo_info is not None else ""
    return SyncedVariant(request.repo_id, commit, found.variant, size, str(folder))


def _dependency(path: Path, repo_id: str, pin: object) -> Request:
    check_repo_id(repo_id)
    if type(pin) is int and pin >= 0:
        return Request(repo_id, pin, None)
    if isinstance(pin, str) and pin:
        return Request(repo_id, None, pin)
    raise LockError(f'{path}: "{repo_id}" = {pin!r} is neither a version, as 1, nor a revision, as "main"')


def _lock(config: Config, policy: Policy, request: Request) -> KernelLock:
    version = open_version(config, request, fresh=True)
    if version.repo_id != request.repo_id:
        raise LockError(f"{request.repo_id} has moved to {version.repo_id}: depend on that")
    signer = None
    if admit_late(config, policy, version, fresh=True):
        for name in version.variants:
            admit_variant(config, request, version, name)
    else:
        signer = admit(config, policy, version).signer
    with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="khub-lock") as pool:
        every = pool.map(lambda name: read_metadata(config, request, version, name), version.variants)
        metadata = dict(zip(version.variants, every, strict=True))
    variants = {name: _pin(version, name, data) for name, data in metadata.items()}
    parsed = [fetch_metadata(config, request, version, name) for name in metadata]
    depends = dict.fromkeys(needed for one in parsed for needed in kernel_depends(one))
    return KernelLock(
        request, version.commit, variants, tuple(depends), None if signer is None else signer.id
    )


def _pin(version: Version, name: str, metadata: bytes) -> VariantLock:
    variant = version.variants[name]
    listing = variant.key if isinstance(variant, ListedVariant) else None
    return VariantLock(sha256_hex(metadata), variant.size, listing)
