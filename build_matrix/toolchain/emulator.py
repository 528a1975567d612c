"""A CPython of another architecture, run by qemu's user emulation: nothing installed, no root, no virtual machine.

The emulated process sees this machine's files, but for those that a folder of unpacked packages has under the same
absolute path: the system's libraries, and the kernel's description of the processor.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hub_loader.errors import ToolchainError

from ..matrix import EmulatorRelease
from .cache import ToolchainCache
from .debian import unpack_packages
from .host import HostCompiler
from .runner import Runner

_FORMAT = 1
# Ten times slower than the machine itself, and importing torch reads a thousand files.
_SECONDS = 1800

# A processor of ARM servers, without SVE and bfloat16 instructions.
_CPU = "neoverse-n1"
# One of those, as the kernel describes it in files that libraries read: this machine's own describe another
# architecture's processor, over which some torch releases crash.
_PROCESSOR = {
    "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\n"
    "CPU part\t: 0xd0c\nCPU revision\t: 1\n\n",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
    "sys/devices/system/cpu/cpu0/regs/identification/midr_el1": "0x00000000413fd0c1\n",
}


def emulated_runner(cache: ToolchainCache, release: EmulatorRelease, compiler: HostCompiler) -> Runner:
    """The CPython of `release`, fetched on first use (75 MB); `compiler` compiles for its architecture.

    Raises:
        ToolchainError: a package is not to be had or not as locked.
    """
    qemu, system = fetch_emulator(cache, release)
    major, minor = release.python
    triple = f"{release.arch}-linux-gnu"
    return Runner(
        (qemu, "-cpu", _CPU, "-L", system, system / "usr" / "bin" / f"python{major}.{minor}"),
        minor,
        compiler,
        libraries=(system / "lib" / triple, system / "usr" / "lib" / triple),
        seconds=_SECONDS,
        note=" under qemu",
    )


def fetch_emulator(cache: ToolchainCache, release: EmulatorRelease) -> tuple[Path, Path]:
    """The qemu program and the root folder of the system of `release`.

    Raises:
        ToolchainError: a package is not to be had or not as locked, or holds no qemu for the architecture.
    """
    program = f"qemu-{release.arch}-static"

    def fetch_qemu(folder: Path) -> None:
        unpacked = folder / "unpacked"
        unpack_packages(unpacked, release.qemu, cache.downloads, cache.pins)
        found = unpacked / "usr" / "bin" / program
        if not found.is_file():
            raise ToolchainError(
                f"{', '.join(release.qemu.packages)} holds no {program}: correct matrix.toml"
            )
        found.rename(folder / program)
        shutil.rmtree(unpacked)  # the emulators of every other architecture

    def fetch_system(folder: Path) -> None:
        unpack_packages(folder, release.system, cache.downloads, cache.pins)
        for name, text in _PROCESSOR.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    qemu = cache.provide(f"qemu-{release.arch}", f"{_FORMAT} {release.arch} {release.qemu}", fetch_qemu)
    system = cache.provide(f"system-{release.arch}", f"{_FORMAT} {release.system} {_PROCESSOR}", fetch_system)
    return qemu / program, system
