"""Swap the layers of a torch model for kernels: mark a layer, map its name to a kernel, kernelize the model.

    @use_kernel_forward_from_hub("RMSNorm")
    class RMSNorm(nn.Module): ...

    register_kernel_mapping({"RMSNorm": {"cuda": LayerRepository("org/rmsnorm-rotary", layer_name="RMSNorm")}})
    model = kernelize(model, mode=Mode.INFERENCE)

Names, arguments and meaning are those of the `kernels` package, and so are the marks left on classes: a model
marked by either is kernelized by both. docs/layers.md lists the differences. Importing this package does
not import torch.
"""

from __future__ import annotations

from .devices import CUDAProperties, Device, ROCMProperties
from .mapping import register_kernel_mapping, use_kernel_mapping
from .marks import (
    replace_kernel_forward_from_hub,
    use_kernel_forward_from_hub,
    use_kernel_func_from_hub,
    use_kernelized_func,
)
from .modes import KernelizeFallback, Mode
from .repositories import (
    FuncRepository,
    LayerRepository,
    LocalFuncRepository,
    LocalLayerRepository,
    LockedFuncRepository,
    LockedLayerRepository,
    Repository,
)
from .swap import LayerChoice, kernelize, kernelized_layers

__all__ = [
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
    "Repository",
    "kernelize",
    "kernelized_layers",
    "register_kernel_mapping",
    "replace_kernel_forward_from_hub",
    "use_kernel_forward_from_hub",
    "use_kernel_func_from_hub",
    "use_kernel_mapping",
    "use_kernelized_func",
]
