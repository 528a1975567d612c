"""The machine's own C++ compiler: found, asked who it is, refused when it cannot do the job."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hub_loader.errors import ToolchainError

_OLDEST_GCC = 9  # C++17 complete, as torch's headers need


@dataclass(frozen=True)
class HostCompiler:
    """A g++: its path, version, and target such as x86_64-linux-gnu."""

    path: Path
    version: str
    target: str

    @property
    def arch(self) -> str:
        return self.target.split("-")[0]

    def file(self, name: str) -> Path | None:
        """Where the compiler finds a library or object of the system, e.g. libstdc++.so.6."""
        found = Path(_ask(self.path, f"-print-file-name={name}"))
        return found.resolve() if found.is_absolute() and found.exists() else None


def find_compiler() -> HostCompiler:
    """`$CXX` if set, else g++.

    Raises:
        ToolchainError: none there, not gcc, or too old.
    """
    name = os.environ.get("CXX") or "g++"
    found = shutil.which(name)
    if found is None:
        raise ToolchainError(
            f"no C++ compiler {name!r}: install g++ (Debian: apt-get install g++) or set CXX"
        )
    return ask_compiler(Path(found))


def ask_compiler(path: Path) -> HostCompiler:
    """Who the compiler at `path` is.

    Raises:
        ToolchainError: it is not gcc, too old, or does not run.
    """
    version = _ask(path, "-dumpfullversion")
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < _OLDEST_GCC:
        raise ToolchainError(
            f"{path} is version {version or '?'}: g++ {_OLDEST_GCC} or newer is needed; set CXX"
        )
    return HostCompiler(path, version, _ask(path, "-dumpmachine"))


def _ask(path: Path, option: str) -> str:
    try:
        file = path.stat()
    except OSError as error:
        raise ToolchainError(f"{path} cannot be run: {error.strerror}; set CXX to a g++") from None
    return _answer(path, option, file.st_ino, file.st_mtime_ns)


@cache
def _answer(path: Path, option: str, inode: int, changed: int) -> str:
    """What a compiler answers, asked once in a process while its file is the same: a build asks hundreds of times."""
    done = subprocess.run([path, option], capture_output=True, text=True)
    if done.returncode:
        raise ToolchainError(f"{path} {option} failed: {done.stderr.strip()}; set CXX to a g++")
    return done.stdout.strip()
