"""What a binding to CPython's own ABI is compiled with: the headers of one minor release, and pybind11's.

No index has CPython's headers as a package, so they are those of an interpreter on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .cache import ToolchainCache
from .interpreters import interpreter_with_headers
from .wheel_files import wheel_files

# Headers alone: equal for every architecture.
PYBIND11_INCLUDE = "pybind11/include"


@dataclass(frozen=True)
class PythonSdk:
    """Folders of CPython's headers, of one minor release, and of pybind11's."""

    python: tuple[Path, ...]
    pybind11: Path

    @property
    def include_dirs(self) -> tuple[Path, ...]:
        return *self.python, self.pybind11


def python_sdk(cache: ToolchainCache, tag: str, requirement: str) -> PythonSdk:
    """Headers for interpreters of `tag` (e.g. "cp311"); pybind11's (300 KB) are fetched on first use.

    Raises:
        ToolchainError: no interpreter of that tag with headers here, or pybind11 is not to be had or not as locked.
    """
    include = interpreter_with_headers(tag).include
    return PythonSdk(include, pybind11_headers(cache, requirement))


def pybind11_headers(cache: ToolchainCache, requirement: str) -> Path:
    """The include folder of pybind11, e.g. of "pybind11==3.1.0"."""
    return wheel_files(cache, requirement, "x86_64", [PYBIND11_INCLUDE]) / PYBIND11_INCLUDE
