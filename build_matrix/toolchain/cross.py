"""The compiler for a cell's architecture: the machine's own, or Debian's cross compiler, unpacked."""

from __future__ import annotations

from pathlib import Path

from hub_loader.errors import ToolchainError

from ..matrix import CrossRelease, Matrix
from .cache import ToolchainCache
from .debian import unpack_packages
from .host import HostCompiler, ask_compiler

_FORMAT = 1
# The compiler and its assembler find their own libraries beside them, whatever the system has.
_WRAPPER = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/../lib/x86_64-linux-gnu:$here/../../lib/x86_64-linux-gnu" exec "$here/{command}" "$@"
"""


def compiler_for(cache: ToolchainCache, host: HostCompiler, matrix: Matrix, arch: str) -> HostCompiler:
    """A g++ that compiles for `arch`, on this machine; a cross compiler is fetched on first use (60 MB).

    Raises:
        ToolchainError: no cross compiler for `arch`, or none that runs on this machine.
    """
    if arch == host.arch:
        return host
    release = matrix.cross.get(arch)
    if release is None or host.arch != "x86_64":
        raise ToolchainError(f"no compiler for {arch} runs on {host.arch}: build this variant on {arch}")
    return cross_compiler(cache, release)


def cross_compiler(cache: ToolchainCache, release: CrossRelease) -> HostCompiler:
    """Debian's g++ for another architecture, with the libraries of that architecture.

    Raises:
        ToolchainError: a package is not to be had, not as locked, or the compiler does not run.
    """
    command = f"{release.arch}-linux-gnu-g++"

    def fetch(folder: Path) -> None:
        count = cache.traffic.count(command)
        unpack_packages(folder, release.debian, cache.downloads, cache.pins, count)
        wrapper = folder / "usr" / "bin" / command
        wrapper.unlink(missing_ok=True)
        wrapper.write_text(_WRAPPER.format(command=f"{command}-{release.version}"))
        wrapper.chmod(0o755)

    folder = cache.provide(f"cross-{release.arch}", f"{_FORMAT} {release.debian} {_WRAPPER}", fetch)
    return ask_compiler(folder / "usr" / "bin" / command)
