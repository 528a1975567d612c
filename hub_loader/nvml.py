"""Compute capabilities of the visible NVIDIA GPUs, asked of NVML by ctypes.

NVML rather than CUDA: a process that has called cuInit cannot use CUDA in the children it forks, and a
loader must not do that to its caller.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .variant import Version

_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVML lists it, in PCI bus order."""

    uuid: str
    compute_capability: Version


def visible_compute_capabilities(environ: Mapping[str, str]) -> tuple[Version, ...]:
    """(major, minor) of each GPU that a CUDA program started under `environ` can see; () without a driver."""
    selection = environ.get("CUDA_VISIBLE_DEVICES")
    if selection is not None and not selection.strip():
        return ()
    by_bus = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return select_visible(_gpus(), selection, by_bus=by_bus)


def select_visible(gpus: Sequence[Gpu], selection: str | None, *, by_bus: bool) -> tuple[Version, ...]:
    """Apply CUDA_VISIBLE_DEVICES (`selection`, None when unset) to the GPUs of a machine.

    Entries are indices or UUID prefixes; the first one that names no GPU ends the list, as in CUDA. Without
    CUDA_DEVICE_ORDER=PCI_BUS_ID (`by_bus`) CUDA numbers different GPUs by speed, which NVML does not tell,
    and a MIG slice has its own UUID: in both cases every GPU counts, since a variant that fits all fits.
    """
    everything = tuple(gpu.compute_capability for gpu in gpus)
    if selection is None:
        return everything
    visible: list[Version] = []
    for entry in (part.strip() for part in selection.split(",")):
        if entry.startswith("MIG-"):
            return everything
        if re.fullmatch(r"\d+", entry):
            if len(set(everything)) > 1 and not by_bus:
                return everything
            matching = [everything[int(entry)]] if int(entry) < len(gpus) else []
        else:
            matching = [gpu.compute_capability for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(matching) != 1:  # no such GPU, or a prefix of several
            break
        visible += matching
    return tuple(visible)


def _gpus() -> tuple[Gpu, ...]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()  # no driver installed
    if nvml.nvmlInit_v2() != 0:
        return ()  # installed without a device, as in a container
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return ()
        return tuple(gpu for index in range(count.value) if (gpu := _gpu(nvml, index)) is not None)
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu | None:
    device = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
        return None
    major, minor, uuid = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_UUID_BYTES)
    capability = nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
    if capability != 0 or nvml.nvmlDeviceGetUUID(device, uuid, ctypes.c_uint(_UUID_BYTES)) != 0:
        return None
    return Gpu(uuid.value.decode(), (major.value, minor.value))
