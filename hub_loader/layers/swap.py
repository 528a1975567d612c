"""Replace the forward of every marked layer of a model by the kernel that the mapping gives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import (
    DownloadError,
    LayerError,
    MissingDependencyError,
    NoMatchingVariantError,
    OfflineError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from .checks import check_layer, check_promise, lacking
from .devices import DEVICE_TYPES
from .mapping import KernelMapping, Missing, choose, current_mapping
from .modes import SERVING, KernelizeFallback, Mode
from .repositories import load_for

if TYPE_CHECKING:
    import torch
    from torch import nn

_logger = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound="nn.Module")

# The kernel cannot be had. That it is refused (corrupt, invalid, unfit) is no reason to run without it unseen.
_UNAVAILABLE = (
    DownloadError,
    MissingDependencyError,
    NoMatchingVariantError,
    OfflineError,
    RepositoryNotFoundError,
    VersionNotFoundError,
    FileNotFoundError,  # what a repository that is not of this package may raise
)
# Cases nobody plans for: the others are how a mapping says "not here".
_SAID_ALOUD = KernelizeFallback.NO_LAYER | KernelizeFallback.CANNOT_LOAD
_OFF = ("", "0", "off", "no", "false")


@dataclass(frozen=True)
class LayerChoice:
    """What `kernelize` decided for a layer: `kernel` runs instead of it, or None, for `reason`.

    `module` is the layer's path in the model, `layer` its name in mappings.
    """

    module: str
    layer: str
    kernel: str | None
    reason: str


@dataclass(frozen=True)
class _Target:
    """What a model is kernelized for: a device's type and index (None: the current one), and a mode."""

    type: str
    index: int | None
    mode: Mode

    def capability(self) -> int | None:
        return _capability(self.index)


@dataclass(frozen=True)
class _Swap:
    """What to do with the instances of a class: take `layer`'s forward (None: their own), and why."""

    layer: type[nn.Module] | None
    kernel: str | None
    reason: str


def kernelize(
    model: _Model,
    *,
    mode: Mode,
    device: str | torch.device | None = None,
    use_fallback: bool | KernelizeFallback = True,
) -> _Model:
    """Replace the forward of each marked layer in `model` by that of the kernel registered for it.

    Everything is decided, loaded and checked first: where this raises, the model is as it was. A layer for
    which nothing is found gets its own forward back. With DISABLE_KERNEL_MAPPING=1 in the environment
    every layer does.

    Args:
        mode: what the model will do; again `kernelize` when that changes.
        device: type or torch device to take kernels for; None: that of the model's parameters.
        use_fallback: the cases in which a layer may keep its own forward; True is
            `KernelizeFallback.DEFAULT`, False `KernelizeFallback.NONE`.

    Returns:
        `model` itself. `kernelized_layers` says what was chosen.

    Raises:
        UsageError: a mode without INFERENCE or TRAINING, an unknown device, a model without parameters.
        LayerError: nothing serves a layer in a case that `use_fallback` leaves out, or the layer found is unfit.
        KernelHubError: what loading the kernel raises; see `KernelizeFallback.CANNOT_LOAD`.
    """
    if mode not in SERVING:
        raise UsageError(f"{mode} is not what a model runs in: it needs Mode.INFERENCE or Mode.TRAINING")
    if isinstance(use_fallback, bool):
        use_fallback = KernelizeFallback.DEFAULT if use_fallback else KernelizeFallback.NONE
    chooser = _Chooser(current_mapping(), _target(model, device, mode), use_fallback)
    swaps = [(module, chooser.swap(type(module))) for _, module in _marked(model) if _is_replaceable(module)]
    for module, swap in swaps:
        _apply(module, swap)
    return model


def kernelized_layers(model: nn.Module) -> tuple[LayerChoice, ...]:
    """The marked layers of a model and what runs for each now, in the order of its modules."""
    return tuple(
        LayerChoice(path, _layer_name(type(module)), *_recorded(module)) for path, module in _marked(model)
    )


class _Chooser:
    """Decides once for each class of layers, and says so in the log."""

    def __init__(self, mapping: KernelMapping, target: _Target, fallback: KernelizeFallback) -> None:
        self._mapping = mapping
        self._target = target
        self._fallback = fallback
        self._swaps: dict[type[nn.Module], _Swap] = {}

    def swap(self, cls: type[nn.Module]) -> _Swap:
        """Raises: LayerError, and what loading raises, where the fallback does not allow for it."""
        if cls not in self._swaps:
            self._swaps[cls] = self._decide(cls)
        return self._swaps[cls]

    def _decide(self, cls: type[nn.Module]) -> _Swap:
        if os.environ.get("DISABLE_KERNEL_MAPPING", "").lower() not in _OFF:
            return _Swap(None, None, "DISABLE_KERNEL_MAPPING is set")
        target, name = self._target, _layer_name(cls)
        found = choose(self._mapping, name, target.type, target.mode, target.capability)
        if isinstance(found, Missing):
            return self._keep(cls, found.case, found.reason)
        origin = str(found.repository)
        try:
            layer = load_for(found.repository, target.type)
        except _UNAVAILABLE as error:
            if KernelizeFallback.CANNOT_LOAD not in self._fallback:
                raise
            return self._keep(cls, KernelizeFallback.CANNOT_LOAD, str(error))
        check_layer(layer, cls, origin)
        check_promise(layer, found.mode, origin)
        lacks = lacking(layer, target.mode)
        if lacks:
            return self._keep(cls, KernelizeFallback.NO_COMPATIBLE_MODE, f"{origin} {lacks}")
        _logger.info("layer %r (%s): %s, mapped for %s", name, cls.__name__, origin, found.mode)
        return _Swap(layer, origin, f"mapped for {found.mode}")

    def _keep(self, cls: type[nn.Module], case: KernelizeFallback, reason: str) -> _Swap:
        name = _layer_name(cls)
        if case not in self._fallback:
            raise LayerError(f"layer {name!r}: {reason}, or kernelize with use_fallback={case}")
        level = logging.WARNING if case in _SAID_ALOUD else logging.INFO
        _logger.log(level, "layer %r (%s) keeps its own forward: %s", name, cls.__name__, reason)
        return _Swap(None, None, reason)


def _marked(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each marked layer; functions come before the module that calls them."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        functions: dict[str, nn.Module] = getattr(module, "_kernel_funcs", {})
        for below, found in (*functions.items(), ("", module)):
            if hasattr(type(found), "kernel_layer_name") and id(found) not in seen:
                seen.add(id(found))
                yield ".".join(part for part in (path, below) if part), found


def _layer_name(cls: type[nn.Module]) -> str:
    marked: Any = cls
    return str(marked.kernel_layer_name)


def _is_replaceable(module: nn.Module) -> bool:
    """Whether its class's forward is the one that was marked, and its condition holds."""
    cls: Any = type(module)
    definers = {
        name: next(c for c in cls.__mro__ if name in vars(c)) for name in ("kernel_layer_name", "forward")
    }
    if not issubclass(definers["kernel_layer_name"], definers["forward"]):
        _logger.info("%s overrides the marked forward: mark it to replace it as well", cls.__name__)
        return False
    condition = getattr(cls, "kernel_condition", None)
    if condition is not None and not condition(module):
        _logger.info("layer %r (%s) is left as it is: kernel_condition", cls.kernel_layer_name, cls.__name__)
        return False
    return True


def _apply(module: nn.Module, swap: _Swap) -> None:
    kernel, _ = module.__dict__.get("_kernel_choice", (None, ""))
    if swap.layer is not None:
        module.__dict__["forward"] = MethodType(swap.layer.forward, module)
    elif kernel is not None:
        module.__dict__.pop("forward", None)
    module.__dict__["_kernel_choice"] = (swap.kernel, swap.reason)


def _recorded(module: nn.Module) -> tuple[str | None, str]:
    """Kernel and reason as `_apply` left them; pickling a model keeps them and loses the kernel's forward."""
    running = getattr(module.__dict__.get("forward"), "__func__", None)
    if "_kernel_choice" not in module.__dict__ or running is type(module).forward:
        return None, "not kernelized"
    kernel, reason = module.__dict__["_kernel_choice"]
    return kernel, reason


def _target(model: nn.Module, device: str | torch.device | None, mode: Mode) -> _Target:
    if isinstance(device, str):
        kind, _, index = device.partition(":")
        if kind not in DEVICE_TYPES or not (index.isdecimal() or device == kind):
            raise UsageError(f"{device!r} is not a device: use one of {', '.join(DEVICE_TYPES)}, or cuda:0")
        return _Target(kind, int(index) if index else None, mode)
    if device is None:
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise UsageError(f"{type(model).__name__} has no parameters, so no device: pass device=")
        device = parameter.device
    import torch

    is_rocm = device.type == "cuda" and torch.version.hip is not None
    return _Target("rocm" if is_rocm else device.type, device.index, mode)


def _capability(index: int | None) -> int | None:
    """Compute capability of a GPU, e.g. 90; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor
