"""Lay a built library out as the Hub's package: variant folder, metadata, index.

    OUT/build/<variant>/__init__.py, _ops.py, <library>.so, <name>/__init__.py, metadata.json
    OUT/provenance.intoto.json
    OUT/index.json

A variant is staged beside its place and renamed, the index written last: a reader of OUT sees the old
or the new package, never a mixture of the two.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hub_loader.errors import IntegrityError, InvalidKernelError
from hub_loader.manifest import (
    INDEX_NAME,
    METADATA_NAME,
    BackendInfo,
    FileEntry,
    Index,
    IndexedVariant,
    Metadata,
    check_path,
    parse_metadata,
    sha256_hex,
)
from hub_loader.variant import parse_variant

from .build_file import BuildFile
from .matrix import Cell
from .noarch import build_backend
from .provenance import Provenance
from .statement import STATEMENT_NAME, statement

_OPS = '''"""The operators of this build, under their unique namespace."""

import torch

from . import {id}  # noqa: F401  loading the library registers the operators

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """The full name of an operator: "attend" gives "{id}::attend"."""
    return f"{id}::{{op_name}}"
'''

# Python-only kernels register their operators themselves, by the names that these give.
_NOARCH_OPS = '''"""The operators of this build, under their unique namespace: registered by its own Python code."""

import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """The full name of an operator: "attend" gives "{id}::attend"."""
    return f"{id}::{{op_name}}"
'''

# The names are those of the Hub's kernel-builder. A loader that has verified the
# library opens what it verified.
_TVM_FFI_OPS = '''"""The functions of this build, opened by tvm-ffi, and helpers to register them with JAX and torch."""

from importlib.util import find_spec
from pathlib import Path

import tvm_ffi

has_jax = find_spec("jax") is not None and find_spec("jax_tvm_ffi") is not None
has_torch = find_spec("torch") is not None

_load_verified = getattr(__spec__.loader, "load_native", None)
if _load_verified is not None:
    ops = _load_verified("{id}.so", tvm_ffi.load_module)
else:
    ops = tvm_ffi.load_module(Path(__file__).parent / "{id}.so")


def torch_add_op_namespace_prefix(op_name: str) -> str:
    """The full name of a torch operator: "relu" gives "{id}::relu"."""
    return f"{id}::{{op_name}}"


def jax_add_ffi_target_name_prefix(name: str) -> str:
    """The full name of a JAX FFI target: "relu" gives "{id}.relu"."""
    return f"{id}.{{name}}"


def jax_register_ffi_target(name: str, *args, **kwargs):
    """Register a JAX FFI target under its full name; without JAX, do nothing."""
    if not has_jax:
        return None
    from jax_tvm_ffi import register_ffi_target

    return register_ffi_target(jax_add_ffi_target_name_prefix(name), *args, **kwargs)


def jax_ffi_call(name: str, *args, **kwargs):
    """`jax.ffi.ffi_call` of the target `name`; raises RuntimeError without JAX."""
    if not has_jax:
        raise RuntimeError("jax_ffi_call needs JAX: pip install jax jax-tvm-ffi")
    from jax.ffi import ffi_call

    return ffi_call(jax_add_ffi_target_name_prefix(name), *args, **kwargs)
'''
_PYTHON_OPS = '''"""The functions of this build's library, under its unique name."""

from . import {id} as ops  # noqa: F401
'''
_OPS_OF = {"torch-noarch": _NOARCH_OPS, "tvm-ffi": _TVM_FFI_OPS, "none": _PYTHON_OPS}

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


def write_variant(
    build: BuildFile, cell: Cell, kernel_id: str, library: Path | None, out: Path, origin: Provenance
) -> Path:
    """Put the cell's package folder into `out/build`; returns it. An equal one is left untouched.

    `library` is None for a Python-only kernel.
    """
    folder = out / "build" / str(cell)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder.parent))
    ops = _OPS_OF.get(cell.variant.framework.name, _OPS)
    try:
        for source in _python_files(build):
            _write(staging / source.relative_to(build.python_sources), source.read_bytes())
        _write(staging / "_ops.py", ops.format(id=kernel_id).encode())
        _write(
            staging / build.general.python_name / "__init__.py", _COMPATIBILITY.format(id=kernel_id).encode()
        )
        if library is not None:
            _write(staging / library.name, library.read_bytes())
        digest = {path: entry.sha256 for path, entry in file_entries(staging).items()}
        general = build.general
        backend = build_backend(cell.variant)
        depends = general.depends_of(backend)
        metadata = Metadata(
            id=kernel_id,
            name=general.name,
            version=general.version,
            license=general.license,
            backend=BackendInfo(backend, cell.capabilities),
            digest=digest,
            python_depends=depends.python,
            kernel_depends=depends.kernels,
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


def install_variant(files: Mapping[str, bytes], name: str, out: Path) -> Path:
    """Put a variant's files, made elsewhere, into `out/build/<name>`; returns it. An equal one is untouched."""
    folder = out / "build" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder.parent))
    try:
        for path, data in files.items():
            check_path(path)
            _write(staging / path, data)
        if not _same(staging, folder):
            _replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def check_files(files: Mapping[str, bytes], origin: str) -> Metadata:
    """Hold a variant's files against the digests in its own metadata, which is returned.

    Raises:
        IntegrityError: a file that differs, is missing or is not listed. `origin` names the variant.
    """
    metadata = parse_metadata(files.get(METADATA_NAME, b""), origin=f"{origin}/{METADATA_NAME}")
    found = {path: sha256_hex(data) for path, data in files.items() if path != METADATA_NAME}
    if found != metadata.digest:
        raise IntegrityError(f"{origin}: the files are not those that its metadata lists; build it again")
    return metadata


def write_index(out: Path) -> Index:
    """Write `out/index.json`, and what it is made of beside it, from the variant folders in `out/build`.

    Raises:
        InvalidKernelError: the folders are not of one kernel and version.
    """
    variants: dict[str, IndexedVariant] = {}
    identities: set[tuple[str, int]] = set()
    origins: dict[str, Mapping[str, Any]] = {}
    for folder in sorted((out / "build").iterdir()):
        if folder.name.startswith("."):
            continue
        parse_variant(folder.name)
        data = (folder / METADATA_NAME).read_bytes()
        metadata = parse_metadata(data, origin=str(folder / METADATA_NAME))
        identities.add((metadata.name, metadata.version))
        origins[folder.name] = metadata.provenance or {}
        entry = FileEntry(sha256_hex(data), len(data))
        variants[folder.name] = IndexedVariant(metadata.id, metadata.backend, entry, file_entries(folder))
    if len(identities) != 1:
        found = ", ".join(f"{name} version {version}" for name, version in sorted(identities)) or "no variant"
        raise InvalidKernelError(
            f"{out / 'build'} holds {found}: a package is one version of one kernel; clear it"
        )
    name, version = identities.pop()
    index = Index(name, version, variants)
    _write(out / STATEMENT_NAME, statement(index, origins))
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
