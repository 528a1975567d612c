"""Read `build.toml`: the Hub's own source format into frozen dataclasses.

Every key is known here or refused by name, so a misspelt option never silently does nothing. The schema
is that of the Hub's kernel-builder, edition 5; files of older editions are brought to it first
(`editions.py`). Paths are relative to the kernel's folder. One table is ours and no other builder knows it:
`[pybind11]` (src, include, cxx-flags, pyext), a binding to CPython's own ABI, built once for each interpreter
and without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub_loader.errors import BuildConfigError, InvalidKernelError
from hub_loader.manifest import check_kernel_name

from .build_file import BuildFile, Component, Depends, Framework, General
from .contradictions import check
from .editions import EDITION, to_current
from .toml_table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILD_FILE = "build.toml"
BACKENDS = ("cann", "cpu", "cuda", "metal", "neuron", "rocm", "tpu", "xpu")
_FRAMEWORKS = ("torch", "torch-noarch", "tvm-ffi", "pybind11")


def read_build_file(folder: Path) -> BuildFile:
    """Read `folder/build.toml` and check that the files it names exist.

    Raises:
        BuildConfigError: no such file, TOML syntax, an unknown edition or key, a missing key or source, or
            parts that contradict each other.
    """
    path = folder / BUILD_FILE
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BuildConfigError(f"{path} does not exist: name a folder that holds a {BUILD_FILE}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BuildConfigError(f"{path}: {error}") from None
    build = _build(Table(to_current(data), str(path), ""), folder)
    check(build, path)
    return build


def _build(root: Table, folder: Path) -> BuildFile:
    general_table = root.table("general")
    if general_table is None:
        raise root.fail("the table [general] is missing")
    general = _general(general_table)
    tables = {kind: root.table(kind) for kind in _FRAMEWORKS}
    present = [(kind, table) for kind, table in tables.items() if table is not None]
    if len(present) != 1:
        raise root.fail(f"exactly one of {', '.join(f'[{kind}]' for kind in _FRAMEWORKS)} is needed")
    framework = _framework(*present[0])
    kernels = root.table("kernel")
    components = []
    if kernels is not None:
        for name in kernels.items():
            table = kernels.table(name)
            assert table is not None  # `items` listed it
            components.append(_component(name, table))
    root.finish()
    return BuildFile(folder, general, framework, tuple(components))


def _general(table: Table) -> General:
    edition = table.take("edition", int, required=True)
    if edition != EDITION:
        raise table.fail(f"edition {edition} is unknown: {EDITION} is the newest; older files name none")
    name = table.take("name", str, required=True)
    try:
        check_kernel_name(name)
    except InvalidKernelError as error:
        raise table.fail(str(error)) from None
    backends = table.strings("backends", required=True)
    for backend in backends:
        if backend not in BACKENDS:
            raise table.fail(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    hub = table.table("hub")
    repo_id, branch = (hub.take("repo-id", str), hub.take("branch", str)) if hub else (None, None)
    if hub:
        hub.finish()
    minver = maxver = None
    backend_depends = {}
    for backend in ("cuda", "neuron", "tpu", "xpu"):
        own = table.table(backend)
        if own is None:
            continue
        if backend == "cuda":
            minver, maxver = own.version("minver"), own.version("maxver")
        backend_depends[backend] = Depends(own.strings("python-depends"), _kernel_depends(own))
        own.finish()
    general = General(
        name=name,
        version=table.take("version", int, required=True),
        license=table.take("license", str, required=True),
        backends=backends,
        upstream=table.take("upstream", str),
        source=table.take("source", str),
        repo_id=repo_id,
        branch=branch,
        python_depends=table.strings("python-depends"),
        kernel_depends=_kernel_depends(table),
        cuda_minver=minver,
        cuda_maxver=maxver,
        backend_depends=backend_depends,
    )
    table.finish()
    return general


def _kernel_depends(table: Table) -> tuple[Any, ...]:
    """Kernels by repository and version (a number) or revision, as `metadata.json` repeats them."""
    entries = table.take("kernel-depends", list, [])
    for entry in entries:
        known = isinstance(entry, dict) and isinstance(entry.get("repo-id"), str)
        pins = [(key, entry[key]) for key in ("version", "revision") if known and key in entry]
        kinds = {"version": int, "revision": str}
        if len(pins) != 1 or len(entry) != 2 or type(pins[0][1]) is not kinds[pins[0][0]]:
            raise table.fail(
                "'kernel-depends' entries look like { repo-id = \"org/name\", version = 1 } "
                f'or {{ repo-id = …, revision = "…" }}, not {entry!r}'
            )
    return tuple(entries)


def _framework(kind: str, table: Table) -> Framework:
    pyext = table.strings("pyext", default=("py", "pyi"))
    if kind == "torch-noarch":
        framework = Framework(
            kind,
            pyext=pyext,
            cuda_capabilities=table.strings("cuda_capabilities"),
            rocm_archs=table.strings("rocm_archs"),
        )
    else:
        framework = Framework(
            kind,
            src=table.strings("src", required=kind in ("tvm-ffi", "pybind11")),
            include=table.strings("include"),
            pyext=pyext,
            cxx_flags=table.strings("cxx-flags"),
            minver=table.version("minver") if kind == "torch" else None,
            maxver=table.version("maxver") if kind == "torch" else None,
            stable_abi=_stable_abi(table) if kind == "torch" else None,
        )
    table.finish()
    return framework


def _stable_abi(table: Table) -> Mapping[str, tuple[int, int]] | None:
    """One version for every backend, or a version for each."""
    value = table.take("stable-abi", object)
    if value is None:
        return None
    if isinstance(value, str):
        return dict.fromkeys(BACKENDS, table.parse_version("stable-abi", value))
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise table.fail("'stable-abi' must be a version such as '2.10', or a table of backend = version")
    for backend in value:
        if backend not in BACKENDS:
            raise table.fail(f"'stable-abi' names the unknown backend {backend!r}")
    return {backend: table.parse_version("stable-abi", version) for backend, version in value.items()}


def _component(name: str, table: Table) -> Component:
    backend = table.take("backend", str, required=True)
    if backend not in BACKENDS:
        raise table.fail(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    cuda = backend == "cuda"
    component = Component(
        name=name,
        backend=backend,
        src=table.strings("src", required=True),
        depends=tuple(table.take("depends", list, required=True)),
        include=table.strings("include"),
        cxx_flags=table.strings("cxx-flags"),
        cuda_flags=table.strings("cuda-flags") if cuda else (),
        cuda_capabilities=table.strings("cuda-capabilities") if cuda else (),
        cuda_minver=table.version("cuda-minver") if cuda else None,
    )
    for key in {"rocm": ("rocm-archs", "hip-flags"), "xpu": ("sycl-flags",)}.get(backend, ()):
        table.strings(key)
    table.finish()
    return component
