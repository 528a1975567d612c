"""Devices that a mapping names: a type, and for NVIDIA and AMD GPUs a range of compute capabilities."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError

DEVICE_TYPES = ("cpu", "cuda", "mps", "neuron", "npu", "rocm", "tpu", "xpu")


@dataclass(frozen=True)
class _CapabilityRange:
    min_capability: int
    max_capability: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"{name}={value!r} is not a number: write capability 9.0 as 90")
        if self.min_capability > self.max_capability:
            raise UsageError(
                f"min_capability={self.min_capability} is above max_capability={self.max_capability}: swap them"
            )


@dataclass(frozen=True)
class CUDAProperties(_CapabilityRange):
    """Compute capabilities of NVIDIA GPUs, both ends included; 9.0 is written 90.

    Raises:
        UsageError: an empty range, or an end that is not an integer.
    """


@dataclass(frozen=True)
class ROCMProperties(_CapabilityRange):
    """Compute capabilities of AMD GPUs as torch numbers them, both ends included; gfx942 is 94.

    Raises:
        UsageError: an empty range, or an end that is not an integer.
    """


@dataclass(frozen=True)
class Device:
    """A device that a mapping has kernels for; without `properties`, every device of the type.

    Raises:
        UsageError: no such type, or properties of another type.
    """

    type: str
    properties: CUDAProperties | ROCMProperties | None = None

    def __post_init__(self) -> None:
        if self.type not in DEVICE_TYPES:
            raise UsageError(f"{self.type!r} is not a device type: use one of {', '.join(DEVICE_TYPES)}")
        expected = {"cuda": CUDAProperties, "rocm": ROCMProperties}.get(self.type, type(None))
        if not isinstance(self.properties, (expected, type(None))):
            raise UsageError(f"{type(self.properties).__name__} does not describe a {self.type!r} device")
