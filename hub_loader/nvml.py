"""The NVIDIA driver and the compute capabilities of the visible GPUs, asked of NVML by ctypes.

NVML rather than CUDA: a process that has called cuInit cannot use CUDA in the children it forks, and a
loader must not do that to its caller.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence

from .record import Record
from .variant import Version

_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE
_DRIVER_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


class Gpu(Record):
    """A GPU as NVML lists it, in PCI bus order."""

    uuid: str
    compute_capability: Version


class Nvidia(Record):
    """What NVML says: the driver's version, the newest CUDA it runs, and the visible GPUs' capabilities.

    All empty without a driver.
    """

    driver: str | None = None
    cuda: Version | None = None
    compute_capabilities: tuple[Version, ...] = ()


def read_nvidia(environ: Mapping[str, str]) -> Nvidia:
    """The driver, and (major, minor) of each GPU that a CUDA program started under `environ` can see."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return Nvidia()  # no driver installed
    if nvml.nvmlInit_v2() != 0:
        return Nvidia()  # installed without a device, as in a container
    try:
        return Nvidia(_driver(nvml), _cuda(nvml), _visible(nvml, environ))
    finally:
        nvml.nvmlShutdown()


def parse_cuda_version(number: int) -> Version | None:
    """(12, 8) of 12080, as CUDA's interfaces encode a version; None for what is no version."""
    return (number // 1000, number % 1000 // 10) if number >= 1000 else None


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
        if re.fullmatch(r"\d{1,9}", entry, re.ASCII):
            if len(set(everything)) > 1 and not by_bus:
                return everything
            matching = [everything[int(entry)]] if int(entry) < len(gpus) else []
        else:
            matching = [gpu.compute_capability for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(matching) != 1:  # no such GPU, or a prefix of several
            break
        visible += matching
    return tuple(visible)


def _visible(nvml: ctypes.CDLL, environ: Mapping[str, str]) -> tuple[Version, ...]:
    selection = environ.get("CUDA_VISIBLE_DEVICES")
    if selection is not None and not selection.strip():
        return ()
    return select_visible(_gpus(nvml), selection, by_bus=environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID")


def _driver(nvml: ctypes.CDLL) -> str | None:
    text = ctypes.create_string_buffer(_DRIVER_BYTES)
    status = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(_DRIVER_BYTES))
    return text.value.decode(errors="replace") if status == 0 else None


def _cuda(nvml: ctypes.CDLL) -> Version | None:
    number = ctypes.c_int()
    status = nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(number))
    return parse_cuda_version(number.value) if status == 0 else None


def _gpus(nvml: ctypes.CDLL) -> tuple[Gpu, ...]:
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return ()
    return tuple(gpu for index in range(count.value) if (gpu := _gpu(nvml, index)) is not None)


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu | None:
    device = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
        return None
    major, minor, uuid = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_UUID_BYTES)
    capability = nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
    if capability != 0 or nvml.nvmlDeviceGetUUID(device, uuid, ctypes.c_uint(_UUID_BYTES)) != 0:
        return None
    return Gpu(uuid.value.decode(), (major.value, minor.value))
