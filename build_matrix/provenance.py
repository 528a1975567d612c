"""Where a build comes from: digest of sources, commit, builder, toolchain, command lines."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hub_loader.source_files import add_sources, source_digest
from hub_loader.variant import Variant

from .build_file import BuildFile
from .matrix import Cell
from .noarch import build_backend

_BUILDER = Path(__file__).parent


@dataclass(frozen=True)
class Provenance:
    """What a variant was made of.

    `commit` last changed the kernel's folder, `dirty` says whether it has changed since; None outside git.
    `sources` is the SHA-256 that `source_digest` gives. `toolchain` maps each part to its version or to the SHA-256
    of its files; `commands` are the command lines with names instead of this machine's paths.
    """

    commit: str | None
    dirty: bool
    sources: str | None = None
    toolchain: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the Hub's `metadata.json` spells it; "sources", "toolchain" and "commands" are ours, others skip them."""
        data: dict[str, Any] = {"kernel-builder": {"version": version("kernel-hub")}}
        if self.commit is not None:
            data["kernel"] = {"commit": self.commit, "dirty": self.dirty}
        if self.sources is not None:
            data["sources"] = {"sha256": self.sources}
        return data | {"toolchain": dict(self.toolchain), "commands": list(self.commands)}


def provenance(folder: Path) -> Provenance:
    """Ask git about `folder`, and digest it. A folder outside git, or a machine without it, gives no commit."""
    sources = source_digest(folder)
    try:
        log = _git(folder, "log", "-1", "--format=%H", "--", ".")
        status = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return Provenance(None, False, sources)
    return Provenance(log or None, bool(status) or not log, sources)


def kernel_id(build: BuildFile, cell: Cell) -> str:
    """The unique id of one build: `_<name>_<backend>_<digest of sources, cell and builder>`.

    Operators register under it, so two builds that could differ never share one.
    """
    digest = hashlib.sha256()
    add_sources(digest, build.folder)
    digest.update(repr(cell).encode())
    # The files that decide command lines, headers and the generated Python.
    for path in (
        *sorted((_BUILDER / "include").iterdir()),
        _BUILDER / "compile.py",
        _BUILDER / "units.py",
        _BUILDER / "package.py",
        _BUILDER / "toolchain" / "fatbinary.sh",
    ):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"_{build.general.python_name}_{build_backend(cell.variant)}_{digest.hexdigest()[:10]}"


def library_name(kernel_id: str, variant: Variant) -> str:
    """The library's file name, which tells interpreters which of them may load it."""
    if variant.framework.name == "tvm-ffi":
        return f"{kernel_id}.so"  # no Python module: tvm-ffi opens it
    if variant.python is None:
        return f"{kernel_id}.abi3.so"
    assert variant.platform is not None  # the grammar gives noarch variants no interpreter
    version = variant.python.removeprefix("cp")
    return f"{kernel_id}.cpython-{version}-{variant.platform.arch}-linux-gnu.so"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
