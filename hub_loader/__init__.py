"""Load precompiled kernels: resolve the variant that fits, prove its bytes, bind it.

    from hub_loader import get_kernel

    attention = get_kernel("org/paged-attention")

Importing this package imports neither torch nor huggingface_hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .depends import get_kernel_dep
from .environment import Environment, Torch, detect_environment
from .errors import (
    AuthenticationError,
    CacheError,
    DownloadError,
    IntegrityError,
    InvalidKernelError,
    KernelHubError,
    LockError,
    MissingDependencyError,
    NoMatchingVariantError,
    OfflineError,
    PolicyError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from .kernels import (
    Explanation,
    FetchedKernel,
    VariantAccepted,
    VariantRejected,
    explain,
    fetch_kernel,
    get_kernel,
    get_kernel_variants,
    get_local_kernel,
    has_kernel,
    install_kernel,
)
from .loaded import LoadedKernel, RepoInfo, get_loaded_kernels
from .resolver import Decision

if TYPE_CHECKING:
    from .locked import get_locked_kernel, load_kernel

# Imported at their first use: most processes lock no kernels.
_LAZY = {"get_locked_kernel": "locked", "load_kernel": "locked"}

__all__ = [
    "AuthenticationError",
    "CacheError",
    "Decision",
    "DownloadError",
    "Environment",
    "Explanation",
    "FetchedKernel",
    "IntegrityError",
    "InvalidKernelError",
    "KernelHubError",
    "LoadedKernel",
    "LockError",
    "MissingDependencyError",
    "NoMatchingVariantError",
    "OfflineError",
    "PolicyError",
    "RepoInfo",
    "RepositoryNotFoundError",
    "Torch",
    "UsageError",
    "VariantAccepted",
    "VariantRejected",
    "VersionNotFoundError",
    "detect_environment",
    "explain",
    "fetch_kernel",
    "get_kernel",
    "get_kernel_dep",
    "get_kernel_variants",
    "get_loaded_kernels",
    "get_local_kernel",
    "get_locked_kernel",
    "has_kernel",
    "install_kernel",
    "load_kernel",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
