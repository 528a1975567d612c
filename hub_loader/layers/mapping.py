"""Which repository serves a layer: the mapping, and the choice from it.

A mapping is layer -> device type and capability range -> mode -> repository. `merge` and `choose` are
pure. What is registered belongs to the whole process, or to the innermost `use_kernel_mapping` it is registered in.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias

from ..errors import UsageError
from .devices import Device
from .modes import SERVING, KernelizeFallback, Mode
from .repositories import Repository

# What a user writes: layer -> device -> repository, or mode -> repository.
Given: TypeAlias = Mapping[str, Mapping[Device | str, Repository | Mapping[Mode, Repository]]]
Range: TypeAlias = tuple[str, int, int]  # device type, lowest and highest capability
KernelMapping: TypeAlias = Mapping[str, Mapping[Range, Mapping[Mode, Repository]]]

_MODES = {mode for modes in SERVING.values() for mode in modes}


@dataclass(frozen=True)
class Found:
    """The repository to take, and the mode it is mapped for."""

    repository: Repository
    mode: Mode


@dataclass(frozen=True)
class Missing:
    """No repository serves, in which of the cases, and what would."""

    case: KernelizeFallback
    reason: str


@dataclass
class _Scope:
    mapping: KernelMapping = field(default_factory=dict)


# The default is shared by every thread: the process's own scope.
_scope: ContextVar[_Scope] = ContextVar("kernel_mapping", default=_Scope())  # noqa: B039
_lock = threading.Lock()


def register_kernel_mapping(mapping: Given, inherit_mapping: bool = True) -> None:
    """Say which kernels `kernelize` takes for which layers, from now on.

    Args:
        mapping: layer name -> device -> repository, or -> {mode: repository}. A device is a type
            ("cuda") or a `Device`; a repository without a mode is one for `Mode.FALLBACK`. What
            is registered for the same layer, device and range before is replaced.
        inherit_mapping: False forgets all that is registered before.

    Raises:
        UsageError: the mapping has a device or a mode that nothing can ask for; nothing is registered.
    """
    scope = _scope.get()
    with _lock:
        scope.mapping = merge(scope.mapping if inherit_mapping else {}, mapping)


@contextmanager
def use_kernel_mapping(mapping: Given, *, inherit_mapping: bool = True) -> Iterator[None]:
    """Register `mapping` for the duration of a `with`; afterwards everything is as it was before.

    Args:
        mapping: as for `register_kernel_mapping`.
        inherit_mapping: False uses `mapping` alone.

    Raises:
        UsageError: as `register_kernel_mapping`.
    """
    token = _scope.set(_Scope(merge(_scope.get().mapping if inherit_mapping else {}, mapping)))
    try:
        yield
    finally:
        _scope.reset(token)


def current_mapping() -> KernelMapping:
    """What is registered here and now."""
    return _scope.get().mapping


def merge(current: KernelMapping, given: Given) -> KernelMapping:
    """`current` with `given` over it; neither is changed.

    Raises:
        UsageError: as `register_kernel_mapping`.
    """
    merged = {layer: dict(ranges) for layer, ranges in current.items()}
    for layer, devices in given.items():
        ranges = merged.setdefault(layer, {})
        for named, given_modes in devices.items():
            device = Device(named) if isinstance(named, str) else named
            modes = dict(given_modes) if isinstance(given_modes, Mapping) else {Mode.FALLBACK: given_modes}
            for mode in modes:
                if mode not in _MODES:
                    known = ", ".join(str(mode) for mode in sorted(_MODES, key=lambda mode: mode.value))
                    raise UsageError(f"{layer!r} is mapped for {mode}, which nothing asks for: use {known}")
            ranges[_range(device)] = modes
    return merged


def choose(
    mapping: KernelMapping, layer: str, device_type: str, mode: Mode, capability: Callable[[], int | None]
) -> Found | Missing:
    """The repository for a layer on a device: of the ranges that hold its capability the narrowest, of those
    equally narrow the highest; in it, the first mode that serves `mode`.

    Args:
        capability: the device's, e.g. 90; None if it cannot be told. Called only if a range depends on it.
    """
    if layer not in mapping:
        reason = f"no kernel is mapped to it: add {layer!r} to the mapping"
        return Missing(KernelizeFallback.NO_LAYER, reason)
    ranges = {key: modes for key, modes in mapping[layer].items() if key[0] == device_type}
    if not ranges:
        has = ", ".join(sorted({key[0] for key in mapping[layer]})) or "none"
        reason = f"no kernel is mapped to it on {device_type}: the mapping has devices {has}"
        return Missing(KernelizeFallback.NO_DEVICE, reason)
    modes = _narrowest(ranges, capability)
    if modes is None:
        spans = ", ".join(f"{low} to {high}" for _, low, high in sorted(ranges))
        found = capability()
        here = "no capability could be read here" if found is None else f"this device has {found}"
        reason = f"its kernels on {device_type} are for the capabilities {spans}, and {here}"
        return Missing(KernelizeFallback.NO_COMPATIBLE_PROPERTIES, reason)
    for serving in SERVING[mode]:
        if serving in modes:
            return Found(modes[serving], serving)
    has = ", ".join(str(mapped) for mapped in modes) or "none"
    reason = f"no kernel is mapped to it on {device_type} for {mode}: the mapping has {has}"
    return Missing(KernelizeFallback.NO_COMPATIBLE_MODE, reason)


def _range(device: Device) -> Range:
    if device.properties is None:
        return device.type, 0, sys.maxsize
    return device.type, device.properties.min_capability, device.properties.max_capability


def _narrowest(
    ranges: Mapping[Range, Mapping[Mode, Repository]], capability: Callable[[], int | None]
) -> Mapping[Mode, Repository] | None:
    unbounded = [key for key in ranges if key[1:] == (0, sys.maxsize)]
    fitting = unbounded
    if len(unbounded) < len(ranges):
        here = capability()
        fitting = [key for key in ranges if here is not None and key[1] <= here <= key[2]] or unbounded
    if not fitting:
        return None
    return ranges[min(fitting, key=lambda key: (key[2] - key[1], -key[1]))]
