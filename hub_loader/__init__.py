"""Load precompiled kernels: resolve the variant that fits, prove its bytes, bind it.

    from hub_loader import get_kernel

    attention = get_kernel("org/paged-attention")

Importing this package imports nothing else; each name brings what it needs when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers take for true; importing typing costs more than all of this
if TYPE_CHECKING:
    from typing import Any

    from .autotune import Fastest
    from .choose import Workload
    from .depends import get_kernel_dep
    from .described import Description, describe_environment
    from .entry import get_kernel
    from .environment import Environment, Torch, detect_environment
    from .errors import (
        AuthenticationError,
        CacheError,
        DownloadError,
        IntegrityError,
        InvalidKernelError,
        KernelHubError,
        LayerError,
        LockError,
        MissingDependencyError,
        NoMatchingVariantError,
        OfflineError,
        PolicyError,
        RepositoryNotFoundError,
        UsageError,
        VersionNotFoundError,
    )
    from .explanation import explain_folder
    from .fallback import Choice, get_choices
    from .kernels import (
        Explanation,
        FetchedKernel,
        VariantAccepted,
        VariantRejected,
        explain,
        fetch_kernel,
        get_kernel_variants,
        get_local_kernel,
        has_kernel,
        install_kernel,
    )
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
    from .loaded import LoadedKernel, RepoInfo, get_loaded_kernels
    from .locked import get_locked_kernel, load_kernel
    from .resolver import Decision
    from .verdicts import Verdict


# Imported at their first use: a process pays for what it calls, and `import hub_loader` for next to nothing.
_ERRORS = (
    "AuthenticationError",
    "CacheError",
    "DownloadError",
    "IntegrityError",
    "InvalidKernelError",
    "KernelHubError",
    "LayerError",
    "LockError",
    "MissingDependencyError",
    "NoMatchingVariantError",
    "OfflineError",
    "PolicyError",
    "RepositoryNotFoundError",
    "UsageError",
    "VersionNotFoundError",
)
_KERNELS = (
    "Explanation",
    "FetchedKernel",
    "VariantAccepted",
    "VariantRejected",
    "explain",
    "fetch_kernel",
    "get_kernel_variants",
    "get_local_kernel",
    "has_kernel",
    "install_kernel",
)
_LAYERS = (
    "CUDAProperties",
    "Device",
    "FuncRepository",
    "KernelizeFallback",
    "LayerChoice",
    "LayerRepository",
    "LocalFuncRepository",
    "LocalLayerRepository",
    "LockedFuncRepository",
    "LockedLayerRepository",
    "Mode",
    "ROCMProperties",
    "kernelize",
    "kernelized_layers",
    "register_kernel_mapping",
    "replace_kernel_forward_from_hub",
    "use_kernel_forward_from_hub",
    "use_kernel_func_from_hub",
    "use_kernel_mapping",
    "use_kernelized_func",
)
_LAZY = {
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(_KERNELS, "kernels"),
    **dict.fromkeys(_LAYERS, "layers"),
    "Choice": "fallback",
    "Decision": "resolver",
    "Description": "described",
    "Environment": "environment",
    "Fastest": "autotune",
    "LoadedKernel": "loaded",
    "RepoInfo": "loaded",
    "Torch": "environment",
    "Verdict": "verdicts",
    "Workload": "choose",
    "describe_environment": "described",
    "detect_environment": "environment",
    "explain_folder": "explanation",
    "get_choices": "fallback",
    "get_kernel": "entry",
    "get_kernel_dep": "depends",
    "get_loaded_kernels": "loaded",
    "get_locked_kernel": "locked",
    "load_kernel": "locked",
}

__all__ = [
    "AuthenticationError",
    "CUDAProperties",
    "CacheError",
    "Choice",
    "Decision",
    "Description",
    "Device",
    "DownloadError",
    "Environment",
    "Explanation",
    "Fastest",
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
    "LockError",
    "LockedFuncRepository",
    "LockedLayerRepository",
    "MissingDependencyError",
    "Mode",
    "NoMatchingVariantError",
    "OfflineError",
    "PolicyError",
    "ROCMProperties",
    "RepoInfo",
    "RepositoryNotFoundError",
    "Torch",
    "UsageError",
    "VariantAccepted",
    "VariantRejected",
    "Verdict",
    "VersionNotFoundError",
    "Workload",
    "describe_environment",
    "detect_environment",
    "explain",
    "explain_folder",
    "fetch_kernel",
    "get_choices",
    "get_kernel",
    "get_kernel_dep",
    "get_kernel_variants",
    "get_loaded_kernels",
    "get_local_kernel",
    "get_locked_kernel",
    "has_kernel",
    "install_kernel",
    "kernelize",
    "kernelized_layers",
    "load_kernel",
    "register_kernel_mapping",
    "replace_kernel_forward_from_hub",
    "use_kernel_forward_from_hub",
    "use_kernel_func_from_hub",
    "use_kernel_mapping",
    "use_kernelized_func",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":  # `except hub_loader.errors.IntegrityError` after `import hub_loader` alone
        return import_module(".errors", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
