"""Which GPUs run what was compiled for an architecture: CUDA's rules of binary and PTX compatibility. Pure.

A binary runs on GPUs of its own major capability and the same or a later minor; with suffix "a" on that
capability alone, with "f" within the family. PTX is compiled by the driver for any later GPU; the driver must
know the PTX version, so it has to be as new as the CUDA that wrote it.

Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".
"""

from __future__ import annotations

import re

from .variant import Version

_ARCH = re.compile(r"(\d{1,4})\.(\d{1,4})([af]?)(\+PTX)?", re.ASCII)


def is_arch(arch: str) -> bool:
    """Whether `arch` is written like 9.0, 9.0a, 10.0f or 9.0+PTX."""
    return _ARCH.fullmatch(arch) is not None


def covers(arch: str, capability: Version, *, ptx: bool = True) -> bool:
    """Whether code compiled for `arch` runs on a GPU of `capability`.

    Args:
        arch: e.g. "8.0", "9.0a" or "9.0+PTX".
        capability: (major, minor) of the GPU.
        ptx: whether the driver can compile the PTX, where there is some.

    Raises:
        ValueError: `arch` is not written like that.
    """
    match = _ARCH.fullmatch(arch)
    if not match:
        raise ValueError(f"{arch!r} is not a compute capability like 9.0, 9.0a or 9.0+PTX")
    compiled = (int(match[1]), int(match[2]))
    if match[3] == "a":
        return capability == compiled
    if ptx and match[4] and not match[3]:
        return capability >= compiled
    return capability[0] == compiled[0] and capability[1] >= compiled[1]
