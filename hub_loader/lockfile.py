"""`kernels.lock`: the commit of each kernel, and for each of its variants what its bytes must be. Pure.

    [{"dependency": {"repo-id": "org/name", "version": 1},
      "lock": {"commit": "<40 hex digits>", "signer": "<SHA-256 of the publisher's public key>",
               "depends": [{"repo-id": …, "version": …}, …],
               "variants": {"<variant>": {"manifest": "<SHA-256 of metadata.json>", "size": <bytes>,
                                          "listing": "<SHA-256>"}}}}, …]

`dependency` and `commit` are the Hub client's own form (kernels 0.17), which refuses every other key; without
"depends", "signer" and "variants" it reads the file (`to_json(stock=True)`). "listing" stands only where the repository
has no index.json: the digest of the files' ids and sizes in its tree. Both forms are read, and that of
kernels 0.10 to 0.16 (repo_id, sha), of which the commit counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .depends import parse_dependency
from .errors import InvalidKernelError, KernelHubError, LockError
from .hub import check_repo_id
from .manifest import sha256_hex
from .request import Request

LOCK_NAME = "kernels.lock"
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class VariantLock:
    """SHA-256 of metadata.json, bytes of all files, and of a variant without index the SHA-256 of its listing."""

    manifest: str
    size: int
    listing: str | None = None

    @property
    def key(self) -> str:
        """The digest that pins every byte of the variant, as `IndexedVariant.key` and `ListedVariant.key`."""
        return self.listing or self.manifest


@dataclass(frozen=True)
class KernelLock:
    """A kernel at a commit; `variants` is empty where only the commit is locked.

    `signer` is the id of the trusted key that had signed it, None where it was locked without one.
    """

    request: Request
    commit: str
    variants: Mapping[str, VariantLock] = field(hash=False)
    depends: tuple[Request, ...] = ()
    signer: str | None = None


@dataclass(frozen=True)
class LockFile:
    """The kernels of a lock file; `origin` names it in errors, `digest` is the SHA-256 of its bytes."""

    kernels: tuple[KernelLock, ...]
    origin: str
    digest: str = ""

    @property
    def roots(self) -> tuple[KernelLock, ...]:
        """The kernels that no other one in the file depends on."""
        needed = {request for kernel in self.kernels for request in kernel.depends}
        return tuple(kernel for kernel in self.kernels if kernel.request not in needed)

    def find(self, repo_id: str) -> KernelLock:
        """The kernel a program asks for by repository; of several versions the one nothing depends on.

        Raises:
            LockError: it is not locked.
        """
        check_repo_id(repo_id)
        for kernel in (*self.roots, *self.kernels):
            if kernel.request.repo_id == repo_id:
                return kernel
        raise LockError(
            f'{repo_id} is not in {self.origin}: add "{repo_id}" = 1 to [tool.kernels.dependencies] in '
            "pyproject.toml and run `khub lock`"
        )

    def get(self, request: Request) -> KernelLock:
        """The kernel with exactly this version or revision.

        Raises:
            LockError: it is not locked.
        """
        for kernel in self.kernels:
            if kernel.request == request:
                return kernel
        raise LockError(f"{request} is not in {self.origin}, and a locked kernel needs it: run `khub lock`")

    def to_json(self, *, stock: bool = False) -> bytes:
        """The file's bytes, kernels by name; `stock` leaves out what the Hub's own client refuses."""
        entries = []
        for kernel in sorted(self.kernels, key=lambda kernel: str(kernel.request)):
            lock: dict[str, Any] = {"commit": kernel.commit}
            if not stock:
                if kernel.signer is not None:
                    lock["signer"] = kernel.signer
                if kernel.depends:
                    lock["depends"] = [_dependency(request) for request in kernel.depends]
                lock["variants"] = {
                    name: {"manifest": variant.manifest, "size": variant.size}
                    | ({} if variant.listing is None else {"listing": variant.listing})
                    for name, variant in sorted(kernel.variants.items())
                }
            entries.append({"dependency": _dependency(kernel.request), "lock": lock})
        return (json.dumps(entries, indent=2) + "\n").encode()


def parse_lock(data: bytes, *, origin: str) -> LockFile:
    """Parse a lock file of ours or of the Hub's client. `origin` names it in errors.

    Raises:
        LockError: it is malformed, or locks a kernel twice.
    """
    try:
        kernels = tuple(_kernel(entry, origin) for entry in _typed(json.loads(data), list))
    except InvalidKernelError as error:
        raise LockError(f"{error}; run `khub lock`") from None
    except KernelHubError as error:
        raise LockError(f"{origin}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LockError(f"{origin} is not a lock file ({error!r}): run `khub lock`") from None
    if len({kernel.request for kernel in kernels}) != len(kernels):
        raise LockError(f"{origin} locks a kernel twice: run `khub lock`")
    return LockFile(kernels, origin, sha256_hex(data))


def _dependency(request: Request) -> dict[str, Any]:
    pin = {"revision": request.revision} if request.version is None else {"version": request.version}
    return {"repo-id": request.repo_id, **pin}


def _kernel(entry: Any, origin: str) -> KernelLock:
    if "sha" in entry:  # up to kernels 0.16; its hash of the variants is not one that we compute
        check_repo_id(entry["repo_id"])
        return KernelLock(Request(entry["repo_id"], None, _commit(entry["sha"])), _commit(entry["sha"]), {})
    request, lock = parse_dependency(entry["dependency"], origin), entry["lock"]
    variants = {name: _variant(value) for name, value in lock.get("variants", {}).items()}
    depends = tuple(parse_dependency(value, origin) for value in lock.get("depends", []))
    if "variants" in lock and not variants:
        raise ValueError(f"{request.repo_id} has no variants")
    signer = lock.get("signer")
    if signer is not None and not _HEX.fullmatch(signer):
        raise ValueError(f"the signer {signer!r} is not a SHA-256")
    return KernelLock(request, _commit(lock["commit"]), variants, depends, signer)


def _variant(value: Any) -> VariantLock:
    size, listing = _typed(value["size"], int), value.get("listing")
    for digest in (value["manifest"], *([] if listing is None else [listing])):
        if not _HEX.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a SHA-256")
    return VariantLock(value["manifest"], size, listing)


def _commit(value: str) -> str:
    if not _COMMIT.fullmatch(value.lower()):
        raise ValueError(f"{value!r} is not a commit")
    return value.lower()


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
