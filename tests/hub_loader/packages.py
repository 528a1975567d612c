"""Small real packages: Python files, and a native module built with the C compiler against the stable ABI."""

from __future__ import annotations

import itertools
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hub_loader.environment import detect_environment
from hub_loader.manifest import BackendInfo, FileEntry, Index, IndexedVariant, Metadata, sha256_hex

_counter = itertools.count()

_NATIVE = """
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *unused) {{ return PyLong_FromLong({answer}); }}
static PyMethodDef methods[] = {{{{"answer", answer, METH_NOARGS, NULL}}, {{NULL, NULL, 0, NULL}}}};
static PyModuleDef module = {{PyModuleDef_HEAD_INIT, "{id}", NULL, -1, methods}};
PyMODINIT_FUNC PyInit_{id}(void) {{ return PyModule_Create(&module); }}
"""


@dataclass(frozen=True)
class Package:
    """A package folder: `variants` are its variants' folders by name; all share `id`."""

    folder: Path
    id: str
    variants: Mapping[str, Path]


def native_variant() -> str:
    """The variant name of a binary for the interpreter that runs the tests."""
    environment = detect_environment()
    return f"{environment.python}-cpu-{environment.arch}-{environment.os}"


def compile_native(kernel_id: str, folder: Path, answer: int) -> bytes:
    """The bytes of a stable-ABI module `kernel_id` whose answer() is `answer`."""
    source, library = folder / f"{kernel_id}.c", folder / f"{kernel_id}.abi3.so"
    source.write_text(_NATIVE.format(id=kernel_id, answer=answer))
    include = sysconfig.get_paths()["include"]
    subprocess.run(["gcc", "-shared", "-fPIC", "-I", include, "-o", library, source], check=True)
    return library.read_bytes()


def unique_id(name: str = "demo") -> str:
    """An id no other package of this process has."""
    return f"_{name}_cpu_{next(_counter):07x}"


def write_package(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    kernel_id: str,
    name: str = "demo",
    version: int = 1,
    variants: tuple[str, ...] = ("torch-cpu",),
    archs: tuple[str, ...] = (),
    python_depends: tuple[str, ...] = (),
    kernel_depends: tuple[object, ...] = (),
    extra: Mapping[str, object] | None = None,
    has_digest: bool = True,
    has_index: bool = True,
) -> Package:
    """Write index.json and build/<variant>/ with `files` and their metadata.json for each of `variants`.

    Packages of the public Hub have no index, and old ones no digest in metadata.json.
    """
    indexed, folders = {}, {}
    for variant in variants:
        backend = BackendInfo("cuda" if "cu1" in variant or variant == "torch-cuda" else "cpu", archs)
        digest = {path: sha256_hex(data) for path, data in files.items()}
        metadata = Metadata(
            id=kernel_id,
            name=name,
            version=version,
            license="Apache-2.0",
            backend=backend,
            digest=digest if has_digest else None,
            python_depends=python_depends,
            kernel_depends=kernel_depends,
            extra=extra or {},
        ).to_json()
        folders[variant] = folder / "build" / variant
        for path, data in {**files, "metadata.json": metadata}.items():
            (folders[variant] / path).parent.mkdir(parents=True, exist_ok=True)
            (folders[variant] / path).write_bytes(data)
        entries = {path: FileEntry(sha256_hex(data), len(data)) for path, data in files.items()}
        entry = FileEntry(sha256_hex(metadata), len(metadata))
        indexed[variant] = IndexedVariant(kernel_id, backend, entry, entries)
    if has_index:
        (folder / "index.json").write_bytes(Index(name, version, indexed).to_json())
    return Package(folder, kernel_id, folders)


def python_package(
    folder: Path, *, value: int = 1, name: str = "demo", data: bytes = b"", **options: object
) -> Package:
    """A package without native code: `value()` in __init__.py, a subpackage `<name>`, a table, `data` if any."""
    files = {
        "__init__.py": b"from .demo import value\n\n__all__ = ['value']\n",
        "demo/__init__.py": b"from ..numbers import VALUE\n\ndef value():\n    return VALUE\n",
        "numbers.py": f"VALUE = {value}\n".encode(),
        "demo/table.txt": b"one two\n",
        **({"data.bin": data} if data else {}),
    }
    kernel_id = options.pop("kernel_id", None) or unique_id(name)
    return write_package(folder, files, kernel_id=str(kernel_id), name=name, **options)  # type: ignore[arg-type]


def native_package(
    folder: Path, *, answer: int = 42, version: int = 1, is_old: bool = False, **options: object
) -> Package:
    """A package whose answer() is compiled C; `is_old` puts everything below build/<variant>/demo/."""
    kernel_id = unique_id()
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "scratch"
    scratch.mkdir()
    files = {
        "__init__.py": b"from ._ops import ops\n\ndef answer():\n    return ops.answer()\n",
        "_ops.py": f"from . import {kernel_id} as ops\n".encode(),
        f"{kernel_id}.abi3.so": compile_native(kernel_id, scratch, answer),
        "demo/__init__.py": b"from .. import answer\n",
    }
    if is_old:
        del files["demo/__init__.py"]
        files = {f"demo/{path}": data for path, data in files.items()}
    variants = (native_variant(),)
    return write_package(folder, files, kernel_id=kernel_id, version=version, variants=variants, **options)  # type: ignore[arg-type]
