"""How many compilers may run at once: bounded by cores, and by memory, which C++ exhausts first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
# Peak memory of one compiler, measured with g++ 12 and nvcc 13: a unit of all of ATen or pybind11 takes 1.1
# to 1.5 GB, one of the stable ABI or without torch at most 0.4.
HEAVY_UNIT = 3 * GIB // 2
LIGHT_UNIT = 2 * GIB // 5


@dataclass(frozen=True)
class Limits:
    """Compilers at once: `jobs` of any kind, of which `heavy` with all of torch's headers. Both at least 1."""

    jobs: int
    heavy: int


def limits(cores: int, memory: int) -> Limits:
    """The limits on a machine with `cores` and `memory` bytes to spare."""
    jobs = max(1, min(cores, memory // LIGHT_UNIT))
    return Limits(jobs, max(1, min(jobs, memory // HEAVY_UNIT)))


def machine_limits() -> Limits:
    """The limits here and now: the cores this process may use, the memory nobody else does."""
    return limits(len(os.sched_getaffinity(0)), available_memory())


def available_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be allocated: the machine's, or what a container's limit leaves of them."""
    for line in proc.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            machine = int(value.split()[0]) * 1024
            break
    else:
        machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), (cgroup / "memory.current").read_text()
    except OSError:
        return machine  # no cgroup v2: no container's limit to respect
    return machine if limit == "max" else min(machine, max(0, int(limit) - int(used)))
