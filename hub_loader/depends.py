"""What a kernel needs beside itself: Python packages, other kernels, a loader that is new enough.

A kernel names the kernels it needs in `kernel-depends` and takes them, while it is imported, with
`get_kernel_dep("org/name")` from the module `kernels`. That is the Hub's own client; here it need not be
installed: for as long as such a kernel is imported, `kernels` is a module of ours with this function.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .errors import InvalidKernelError, MissingDependencyError
from .hub import check_repo_id
from .manifest import Metadata
from .request import Request

PEER_VERSION = (0, 17, 2)  # of the Hub's own client: its packages that ask for at most this much load here

# python-depends names what the Hub knows by a name of its own: (what pip installs, what is imported; None:
# nothing, it brings libraries alone).
_PACKAGES: dict[str, tuple[str, str | None]] = {
    "tvm-ffi": ("apache-tvm-ffi", "tvm_ffi"),
    "nvidia-cutlass-dsl": ("nvidia-cutlass-dsl", "cutlass"),
    "onednn": ("onednn-devel", None),
}
_current: ContextVar[Mapping[str, ModuleType] | None] = ContextVar("hub_loader_kernel_deps", default=None)


def kernel_depends(metadata: Metadata) -> tuple[Request, ...]:
    """The kernels that a kernel needs, in its order.

    Raises:
        InvalidKernelError: an entry is not {"repo-id": "org/name"} with a "version" or a "revision".
    """
    return tuple(parse_dependency(entry, metadata.name) for entry in metadata.kernel_depends)


def parse_dependency(entry: Any, origin: str) -> Request:
    """One kernel by repository and version or revision, as metadata.json and lock files write it.

    Raises:
        InvalidKernelError: the entry is anything else; `origin` names where it stands.
    """
    if isinstance(entry, dict) and len(entry) == 2 and isinstance(entry.get("repo-id"), str):
        repo_id, version, revision = entry["repo-id"], entry.get("version"), entry.get("revision")
        check_repo_id(repo_id)
        if type(version) is int and version >= 0:
            return Request(repo_id, version, None)
        if isinstance(revision, str) and revision:
            return Request(repo_id, None, revision)
    raise InvalidKernelError(
        f'{origin}: a kernel is written {{"repo-id": "org/name", "version": 1}}, or with a "revision", '
        f"not {entry!r}"
    )


def check_python(metadata: Metadata) -> None:
    """Raise MissingDependencyError unless the loader is new enough and the Python packages are installed."""
    if (needed := metadata.kernels_minver) is not None and _release(needed, metadata) > PEER_VERSION:
        raise MissingDependencyError(
            f"{metadata.name} needs a loader that does what kernels {needed} does, this one follows "
            f"{'.'.join(map(str, PEER_VERSION))}: pip install --upgrade kernel-hub"
        )
    wanted = [_PACKAGES.get(name, (name, "")) for name in metadata.python_depends]
    missing = [package for package, module in wanted if not _is_installed(package, module)]
    if missing:
        raise MissingDependencyError(
            f"{metadata.name} needs {', '.join(missing)}: pip install {shlex.join(missing)}"
        )


def get_kernel_dep(repo_id: str) -> ModuleType:
    """The kernel `repo_id` that the kernel being imported lists in its `kernel-depends`.

    Raises:
        MissingDependencyError: it lists no such kernel, or no kernel is being imported.
    """
    found = _current.get()
    if found is None:
        raise MissingDependencyError(
            f"get_kernel_dep({repo_id!r}) works while a kernel is imported: keep what it returns"
        )
    if repo_id not in found:
        raise MissingDependencyError(f"{repo_id!r} is not in kernel-depends of build.toml: add it there")
    return found[repo_id]


@contextmanager
def providing(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """While the block runs, `get_kernel_dep` gives these modules, and `import kernels` finds it."""
    token = _current.set(modules)
    names = ("kernels", "kernels.deps")
    before = {name: sys.modules.get(name) for name in names}
    if modules:
        sys.modules.update(zip(names, _stand_in(), strict=True))
    try:
        yield
    finally:
        _current.reset(token)
        if modules:
            for name, module in before.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


def _stand_in() -> tuple[ModuleType, ModuleType]:
    """`kernels` with the public names of this package, and `kernels.deps`."""

    def public(name: str) -> Any:
        ours = sys.modules[__name__.partition(".")[0]]
        if name in ours.__all__:
            return getattr(ours, name)
        raise AttributeError(f"module 'kernels' of hub_loader has no {name!r}")

    top, deps = ModuleType("kernels", "Stands in for the Hub's client."), ModuleType("kernels.deps")
    vars(top).update(get_kernel_dep=get_kernel_dep, deps=deps, __getattr__=public, __path__=[])
    vars(deps).update(get_kernel_dep=get_kernel_dep)
    return top, deps


def _release(text: Any, metadata: Metadata) -> tuple[int, ...]:
    parts = text.split(".") if isinstance(text, str) else []
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidKernelError(f"{metadata.name}: kernels-minver {text!r} is not a version like 0.17.0")
    return tuple(map(int, parts))


def _is_installed(dependency: str, module: str | None) -> bool:
    """Whether a requirement, e.g. "einops" or "einops>=0.8", is met by a distribution or a plain module."""
    if module is None:
        return True
    from importlib.metadata import PackageNotFoundError, version  # slow to import, rarely needed

    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(dependency)
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except InvalidRequirement:
        return False
    except PackageNotFoundError:
        module = module or requirement.name.replace("-", "_")
        return module.isidentifier() and find_spec(module) is not None
