"""The CPython interpreters of this machine.

Every place is looked at where people keep several: the running one, PATH, and the folders of pyenv and uv. An
interpreter is asked what it is, never judged by its name: a version manager's shim may not run.
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
    """A CPython with the GIL: its program, tag (cp311), version (3.11.7), and the folders of its headers."""

    path: Path
    tag: str
    version: str
    include: tuple[Path, ...]

    @property
    def minor(self) -> int:
        """E.g. 11 for 3.11."""
        return int(self.tag.removeprefix("cp3"))

    @property
    def has_headers(self) -> bool:
        return bool(self.include) and (self.include[0] / "Python.h").is_file()


def find_interpreter(oldest: int, newest: int) -> Interpreter | None:
    """The running interpreter if its minor version is in the range, else the newest here that is; None without."""
    here = sys.version_info.minor
    others = range(newest, oldest - 1, -1)
    for minor in ([here] if oldest <= here <= newest else []) + [m for m in others if m != here]:
        if found := next(iter(_all(f"cp3{minor}")), None):
            return found
    return None


def interpreter_with_headers(tag: str) -> Interpreter:
    """An interpreter of `tag` (e.g. "cp311") that has its headers, the first found.

    Raises:
        ToolchainError: none is here, or none has its headers.
    """
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ToolchainError(f"{tag} is not the tag of a CPython with the GIL, such as cp311")
    release = f"{match[1]}.{match[2]}"
    found = _all(tag)
    if with_headers := next((python for python in found if python.has_headers), None):
        return with_headers
    if found:
        raise ToolchainError(f"{found[0].path} is there without its headers: install python{release}-dev")
    raise ToolchainError(
        f"no Python {release} is here: install it with its headers (python{release}-dev, pyenv or uv)"
    )


@cache
def _all(tag: str) -> tuple[Interpreter, ...]:
    """The interpreters of `tag` in order of preference: up to the first that has its headers."""
    found: list[Interpreter] = []
    for path in _candidates(f"3.{tag.removeprefix('cp3')}"):
        python = _probe(path)
        if python is not None and python.tag == tag:
            found.append(python)
            if python.has_headers:
                break
    return tuple(found)


def _candidates(release: str) -> Iterator[Path]:
    """Files that may be a Python `release`, in order of preference."""
    name = f"python{release}"
    if f"3.{sys.version_info.minor}" == release:
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
    """What an interpreter says of itself; None where none answers, or one without the ABI of CPython's GIL."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
        answer = json.loads(done.stdout)
        include = tuple(dict.fromkeys(map(Path, answer["include"])))
        return Interpreter(path, answer["tag"], answer["version"], include) if answer["tag"] else None
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
        return None
