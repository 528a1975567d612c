"""CPython's headers, from an interpreter of that version on this machine.

A binding to CPython's own ABI is compiled with the headers of each minor release. No index has them as a
package of their own, so every place is looked at where people keep several interpreters: the running one,
PATH, and the folders of pyenv and uv. An interpreter is asked what it is, never judged by its name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hub_loader.errors import ToolchainError

from .cache import ToolchainCache
from .pip import install_into

_TAG = re.compile(r"cp(3)(\d+)")
_PROBE_SECONDS = 20
_PROBE = """
import json, sys, sysconfig
tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    tag = None
paths = sysconfig.get_paths()
version = sys.version.split()[0]
print(json.dumps({"tag": tag, "version": version, "include": [paths["include"], paths["platinclude"]]}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python: its tag, such as cp311, and version, such as 3.11.7.

    `tag` is None where the ABI is not that of CPython with the GIL.
    """

    path: Path
    tag: str | None
    version: str
    include: tuple[Path, ...]


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
        ToolchainError: no interpreter of that tag with headers here, or the index lacks pybind11.
    """
    interpreter = find_interpreter(tag)

    def fetch(folder: Path) -> None:
        install_into(folder, [requirement])
        if not (folder / "pybind11" / "include" / "pybind11" / "numpy.h").is_file():
            raise ToolchainError(f"the package {requirement} holds no pybind11 headers: use another index")

    return PythonSdk(
        interpreter.include, cache.provide("pybind11", requirement, fetch) / "pybind11" / "include"
    )


@cache
def find_interpreter(tag: str) -> Interpreter:
    """An interpreter of `tag` on this machine that has its headers, the first found.

    Raises:
        ToolchainError: none is here, or none has its headers.
    """
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ToolchainError(f"{tag} is not the tag of a CPython with the GIL, such as cp311")
    release = f"{match[1]}.{match[2]}"
    headless: Path | None = None
    for path in _candidates(release):
        found = _probe(path)
        if found is None or found.tag != tag:
            continue
        if (found.include[0] / "Python.h").is_file():
            return found
        headless = path
    if headless is not None:
        raise ToolchainError(f"{headless} is there without its headers: install python{release}-dev")
    raise ToolchainError(
        f"no Python {release} is here: install it with its headers (python{release}-dev, pyenv or uv)"
    )


def _candidates(release: str) -> Iterator[Path]:
    """Files that may be a Python `release`, in order of preference."""
    name = f"python{release}"
    yield Path(sys.executable)
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if found := shutil.which(name, path=folder):
            yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for root in (pyenv, uv):
        yield from sorted(root.glob(f"*/bin/{name}"))


def _probe(path: Path) -> Interpreter | None:
    """What an interpreter says of itself; None where none answers: a version manager's shim may not run."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
        answer = json.loads(done.stdout)
        include = tuple(dict.fromkeys(map(Path, answer["include"])))
        return Interpreter(path, answer["tag"], answer["version"], include)
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
        return None
