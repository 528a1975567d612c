"""Lay a built library out as the Hub's package: variant folder, metadata, index.

    OUT/build/<variant>/__init__.py, _ops.py, <library>.so, <name>/__init__.py, metadata.json
    OUT/index.json

A variant is staged beside its place and renamed, the index written last: a reader of OUT sees the old
or the new package, never a mixture of the two.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hub_loader.errors import InvalidKernelError
from hub_loader.manifest import (
    INDEX_NAME,
    METADATA_NAME,
    BackendInfo,
    FileEntry,
    Index,
    IndexedVariant,
    Metadata,
    parse_metadata,
    sha256_hex,
)
from hub_loader.variant import parse_variant

from .build_toml import BuildFile
from .matrix import Cell
from .provenance import Provenance

_OPS = '''"""The operators of this build, under their unique namespace."""

import torch

from . import {id}  # noqa: F401  loading the library registers the operators

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """The full name of an operator: "attend" gives "{id}::attend"."""
    return f"{id}::{{op_name}}"
'''

# Clients from before variant folders were packages themselves import `<variant>/<name>`.
_COMPATIBILITY = '''"""The package under its plain name, for clients that look for it here."""

import importlib.util
import sys
from pathlib import Path

_package = sys.modules.get("{id}")
if _package is None:
    _spec = importlib.util.spec_from_file_location("{id}", Path(__file__).parent.parent / "__init__.py")
    _package = importlib.util.module_from_spec(_spec)
    sys.modules["{id}"] = _package
    _spec.loader.exec_module(_package)

__all__ = list(getattr(_package, "__all__", ()))
globals().update({{name: value for name, value in vars(_package).items() if not name.startswith("__")}})
'''


_PYTHON_OPS = '''"""The functions of this build's library, under its unique name."""

from . import {id} as ops  # noqa: F401
'''


def write_variant(
    build: BuildFile, cell: Cell, kernel_id: str, library: Path, out: Path, origin: Provenance
) -> Path:
    """Put the cell's package folder into `out/build`; returns it. An equal one is left untouched."""
    folder = out / "build" / str(cell)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder.parent))
    try:
        for source in _python_files(build):
            _write(staging / source.relative_to(build.python_sources), source.read_bytes())
        ops = _OPS if cell.variant.framework.name != "none" else _PYTHON_OPS
        _write(staging / "_ops.py", ops.format(id=kernel_id).encode())
        _write(
            staging / build.general.python_name / "__init__.py", _COMPATIBILITY.format(id=kernel_id).encode()
        )
        _write(staging / library.name, library.read_bytes())
        digest = {path: entry.sha256 for path, entry in file_entries(staging).items()}
        general = build.general
        backend = cell.variant.backend.name
        metadata = Metadata(
            id=kernel_id,
            name=general.name,
            version=general.version,
            license=general.license,
            backend=BackendInfo(backend, cell.capabilities),
            digest=digest,
            python_depends=general.python_depends
            + (general.cuda_python_depends if backend == "cuda" else ()),
            kernel_depends=general.kernel_depends,
            upstream=general.upstream,
            source=general.source,
            provenance=origin.to_json(),
        )
        _write(staging / METADATA_NAME, metadata.to_json())
        if not _same(staging, folder):
            _replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def write_index(out: Path) -> Index:
    """Write `out/index.json` from the variant folders in `out/build`.

    Raises:
        InvalidKernelError: the folders are not of one kernel and version.
    """
    variants: dict[str, IndexedVariant] = {}
    identities: set[tuple[str, int]] = set()
    for folder in sorted((out / "build").iterdir()):
        if folder.name.startswith("."):
            continue
        parse_variant(folder.name)
        data = (folder / METADATA_NAME).read_bytes()
        metadata = parse_metadata(data, origin=str(folder / METADATA_NAME))
        identities.add((metadata.name, metadata.version))
        entry = FileEntry(sha256_hex(data), len(data))
        variants[folder.name] = IndexedVariant(metadata.id, metadata.backend, entry, file_entries(folder))
    if len(identities) != 1:
        found = ", ".join(f"{name} version {version}" for name, version in sorted(identities)) or "no variant"
        raise InvalidKernelError(
            f"{out / 'build'} holds {found}: a package is one version of one kernel; clear it"
        )
    name, version = identities.pop()
    index = Index(name, version, variants)
    _write(out / INDEX_NAME, index.to_json())
    return index


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Digest and size of every file of a variant folder but its metadata, by path inside it."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != METADATA_NAME:
            data = path.read_bytes()
            entries[relative] = FileEntry(sha256_hex(data), len(data))
    return entries


def _python_files(build: BuildFile) -> Iterator[Path]:
    suffixes = {f".{extension}" for extension in build.framework.pyext}
    for path in sorted(build.python_sources.rglob("*")):
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
            yield path


def _same(left: Path, right: Path) -> bool:
    """Whether two variant folders hold the same files, byte for byte."""
    return (
        (right / METADATA_NAME).is_file()
        and (left / METADATA_NAME).read_bytes() == (right / METADATA_NAME).read_bytes()
        and file_entries(left) == file_entries(right)
    )


def _replace(staging: Path, folder: Path) -> None:
    staging.chmod(0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        folder.rename(old / folder.name)
        staging.rename(folder)
        shutil.rmtree(old)
    else:
        staging.rename(folder)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
