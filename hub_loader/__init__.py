"""Load precompiled kernels: resolve the variant that fits, prove its bytes, bind it.

    from hub_loader import get_kernel

    attention = get_kernel("org/paged-attention")

Importing this package imports neither torch nor huggingface_hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .environment import Environment, Torch, detect_environment
from .errors import (
    AuthenticationError,
    CacheError,
    DownloadError,
    IntegrityError,
    InvalidKernelError,
    KernelHubError,
    LayerError,
    MissingDependencyError,
    NoMatchingVariantError,
    OfflineError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from .kernels import Explanation, FetchedKernel, explain, fetch_kernel, get_kernel, has_kernel
from .loaded import LoadedKernel, RepoInfo, get_loaded_kernels
from .local import get_local_kernel
from .resolver import Decision

if TYPE_CHECKING:
    from .layers import (
        CUDAProperties,
        Device,
        FuncRepository,
        KernelizeFallback,
        LayerChoice,
        LayerRepository,
        LocalFuncRepository,
        LocalLayerRepository,
        LockedFuncRepository,
        LockedLayerRepository,
        Mode,
        ROCMProperties,
        kernelize,
        kernelized_layers,
        register_kernel_mapping,
        replace_kernel_forward_from_hub,
        use_kernel_forward_from_hub,
        use_kernel_func_from_hub,
        use_kernel_mapping,
        use_kernelized_func,
    )

__all__ = [
    "AuthenticationError",
    "CUDAProperties",
    "CacheError",
    "Decision",
    "Device",
    "DownloadError",
    "Environment",
    "Explanation",
    "FetchedKernel",
    "FuncRepository",
    "IntegrityError",
    "InvalidKernelError",
    "KernelHubError",
    "KernelizeFallback",
    "LayerChoice",
    "LayerError",
    "LayerRepository",
    "LoadedKernel",
    "LocalFuncRepository",
    "LocalLayerRepository",
    "LockedFuncRepository",
    "LockedLayerRepository",
    "MissingDependencyError",
    "Mode",
    "NoMatchingVariantError",
    "OfflineError",
    "ROCMProperties",
    "RepoInfo",
    "RepositoryNotFoundError",
    "Torch",
    "UsageError",
    "VersionNotFoundError",
    "detect_environment",
    "explain",
    "fetch_kernel",
    "get_kernel",
    "get_loaded_kernels",
    "get_local_kernel",
    "has_kernel",
    "kernelize",
    "kernelized_layers",
    "register_kernel_mapping",
    "replace_kernel_forward_from_hub",
    "use_kernel_forward_from_hub",
    "use_kernel_func_from_hub",
    "use_kernel_mapping",
    "use_kernelized_func",
]


def __getattr__(name: str) -> Any:
    """The names of `hub_loader.layers`, which few processes need, on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import layers

    globals()[name] = getattr(layers, name)
    return globals()[name]
