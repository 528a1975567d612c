"""What built code is run in: a CPython of one architecture, and how this machine starts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .host import HostCompiler
from .interpreters import Interpreter

# What decides where programs and temporary files are, and nothing about what is imported.
_KEPT = ("PATH", "TMPDIR")
_SECONDS = 300


@dataclass(frozen=True)
class Runner:
    """A CPython: the command that starts it, its minor version (11 for 3.11), and who compiles for it.

    `kept` are the variables of the environment that it inherits, `libraries` the folders of its system's libraries
    where those are not the compiler's, `seconds` how long it may take over a load test, and `note` follows the
    name of what ran in it (" under qemu").
    """

    command: tuple[str | Path, ...]
    minor: int
    compiler: HostCompiler
    kept: tuple[str, ...] = _KEPT
    libraries: tuple[Path, ...] = ()
    seconds: int = _SECONDS
    note: str = ""

    @property
    def arch(self) -> str:
        return self.compiler.arch

    def library(self, name: str) -> Path | None:
        """Where its system has a library, e.g. libstdc++.so.6; None where it has not."""
        here = (folder / name for folder in self.libraries)
        return next((path.resolve() for path in here if path.exists()), None) or self.compiler.file(name)


def native_runner(compiler: HostCompiler, python: Interpreter) -> Runner:
    """An interpreter of this machine, which finds libraries as the machine's programs do."""
    return Runner((python.path,), python.minor, compiler, kept=(*_KEPT, "LD_LIBRARY_PATH"))
