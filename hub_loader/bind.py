"""Bind a verified package: import it under its unique id, from the bytes that were verified.

Nothing goes through `sys.path`, and no bytecode is read or written. Python files are compiled from memory;
native modules are opened through the descriptor that was hashed. That descriptor stays open for the life of
the process: the dynamic linker recognises a library by its path string, so a descriptor number that was
reused would hand out the wrong library.
"""

from __future__ import annotations

import importlib
import linecache
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import ExecutionLoader, Loader, MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import decode_source, find_spec
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from .depends import check_python, providing
from .errors import InvalidKernelError, KernelHubError
from .manifest import python_name
from .verify import VerifiedPackage

T = TypeVar("T")


def bind(package: VerifiedPackage, dependencies: Mapping[str, ModuleType] | None = None) -> ModuleType:
    """Import `package` as the module `<id>` and return it. The same digest again gives the same module.

    `dependencies` are the kernels that it finds with `get_kernel_dep` while it is imported.

    On any error `sys.modules` holds what it held before, as far as the package's own modules go. The caller
    serialises calls.

    Raises:
        InvalidKernelError: the id belongs to another module, there is nothing to import, or importing fails.
        MissingDependencyError: it needs a Python package or a kernel that is not here.
    """
    kernel_id = package.metadata.id
    bound = _FINDER.packages.get(kernel_id)
    if bound is not None and bound.digest == package.digest:
        package.close()
        return importlib.import_module(kernel_id)
    try:
        _check_id_is_free(package, bound)
        _root(package)
        check_python(package.metadata)
    except Exception:
        package.close()
        raise
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.packages[kernel_id] = package
    try:
        with providing(dependencies or {}):
            return importlib.import_module(kernel_id)
    except BaseException as error:  # the descriptors stay open: the linker may know a library by one already
        del _FINDER.packages[kernel_id]
        for name in [n for n in sys.modules if n == kernel_id or n.startswith(f"{kernel_id}.")]:
            del sys.modules[name]
        if isinstance(error, KernelHubError) or not isinstance(error, Exception):
            raise
        reason = " ".join(str(error).split())
        raise InvalidKernelError(
            f"{package.metadata.name} ({package.folder}) fails to import: {type(error).__name__}: {reason}; "
            "tell the publisher"
        ) from error


def _check_id_is_free(package: VerifiedPackage, bound: VerifiedPackage | None) -> None:
    kernel_id = package.metadata.id
    if bound is not None:
        raise InvalidKernelError(
            f"{package.folder}: its id {kernel_id!r} is loaded from other bytes, in {bound.folder}: "
            "start a new process to load this one"
        )
    existing = sys.modules.get(kernel_id)
    spec = find_spec(kernel_id) if existing is None else getattr(existing, "__spec__", None)
    if existing is not None or spec is not None:
        origin = spec.origin if spec is not None else "an unknown place"
        raise InvalidKernelError(
            f"{package.folder}: its id {kernel_id!r} would shadow the module from {origin}: "
            "ask the publisher to rebuild it"
        )


def _root(package: VerifiedPackage) -> str:
    """Prefix of what the module `<id>` is made of: nothing, or the folder `<name>/` of older packages."""
    for root in ("", f"{python_name(package.metadata.name)}/"):
        if f"{root}__init__.py" in package.contents:
            return root
    raise InvalidKernelError(f"{package.folder} has no __init__.py: ask the publisher to rebuild it")


class _VerifiedFinder(MetaPathFinder):
    """Finds the modules of bound packages, and nothing else."""

    def __init__(self) -> None:
        self.packages: dict[str, VerifiedPackage] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        kernel_id, _, rest = fullname.partition(".")
        package = self.packages.get(kernel_id)
        if package is None:
            return None
        root = _root(package)
        stem = root + rest.replace(".", "/") if rest else root.rstrip("/")
        for candidate in (f"{stem}/__init__.py" if stem else "__init__.py", f"{stem}.py"):
            if candidate in package.contents:
                source = _SourceLoader(package, candidate)
                is_package = source.is_package(fullname)
                return _spec(fullname, source, package.folder / candidate, is_package=is_package)
        for suffix in EXTENSION_SUFFIXES:
            if stem + suffix in package.natives:
                native = _NativeLoader(package.folder / (stem + suffix), package.natives[stem + suffix])
                return _spec(fullname, native, native.path)
        return None


class _SourceLoader(ExecutionLoader):
    """Compiles a Python file from verified bytes; `path` is what tracebacks name."""

    def __init__(self, package: VerifiedPackage, path: str) -> None:
        self._package = package
        self._path = path

    def get_filename(self, fullname: str) -> str:
        return str(self._package.folder / self._path)

    def get_source(self, fullname: str) -> str:
        return decode_source(self._package.contents[self._path])

    def exec_module(self, module: ModuleType) -> None:
        # Triton compiles the text that `inspect` finds, which would be the file on disk. An entry without a
        # modification time is never checked against the disk again.
        path, source = self.get_filename(module.__name__), self.get_source(module.__name__)
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        super().exec_module(module)

    def is_package(self, fullname: str) -> bool:
        return self._path.endswith("__init__.py")

    def get_data(self, path: str) -> bytes:
        """The verified bytes of a data file by its path on disk, for pkgutil.get_data."""
        try:
            return self._package.contents[Path(path).relative_to(self._package.folder).as_posix()]
        except (KeyError, ValueError):
            raise FileNotFoundError(f"{path} is not a file of {self._package.metadata.name}") from None

    def load_native(self, name: str, load: Callable[[str], T]) -> T:
        """`load(path)` for a native library of the package that is no Python module: the verified bytes.

        The path ends in the library's name, by which frameworks choose how to open it, and is gone
        afterwards.
        """
        target = _opened_path(self._package.folder / name, self._package.natives[name])
        with tempfile.TemporaryDirectory(prefix="khub-") as folder:
            link = Path(folder) / Path(name).name
            link.symlink_to(target)
            return load(str(link))


class _NativeLoader(Loader):
    """Opens a native module through its verified descriptor, where the system names descriptors as files."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._opened = str(_opened_path(path, descriptor))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        loader = ExtensionFileLoader(spec.name, self._opened)
        return loader.create_module(ModuleSpec(spec.name, loader, origin=self._opened))

    def exec_module(self, module: ModuleType) -> None:
        ExtensionFileLoader(module.__name__, self._opened).exec_module(module)
        module.__file__ = str(self.path)


def _opened_path(path: Path, descriptor: int) -> Path:
    """Where the verified bytes can be opened once more."""
    by_descriptor = Path(f"/proc/self/fd/{descriptor}")
    return by_descriptor if by_descriptor.exists() else path


def _spec(fullname: str, loader: Loader, path: Path, *, is_package: bool = False) -> ModuleSpec:
    """A spec that sets `__file__`; a package's `__path__` is empty, so no other finder looks beside it."""
    spec = ModuleSpec(fullname, loader, origin=str(path), is_package=is_package)
    spec.has_location = True
    return spec


_FINDER = _VerifiedFinder()
