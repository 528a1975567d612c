"""Load a kernel from a folder: the proofs of `get_kernel` without a hub."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from .environment import detect_environment
from .errors import IntegrityError, InvalidKernelError, UsageError
from .loaded import load
from .manifest import INDEX_NAME, METADATA_NAME, BackendInfo, parse_index, parse_metadata
from .resolver import choose
from .variant import parse_variant
from .verify import verify_package


def get_local_kernel(path: str | Path, *, backend: str | None = None) -> ModuleType:
    """Load a kernel from a folder, without a request.

    Args:
        path: a package folder (index.json and build/), its build folder, or the folder of one variant.
        backend: as for `get_kernel`.

    Raises:
        UsageError: there is no kernel package at `path`.
        NoMatchingVariantError, IntegrityError, InvalidKernelError, MissingDependencyError
    """
    folder = Path(path).absolute()
    if (folder / METADATA_NAME).is_file():
        build, names = folder.parent, [folder.name]
    else:
        build = folder / "build" if (folder / "build").is_dir() else folder
        names = _variant_names(build)
    if not names:
        raise UsageError(f"{folder} holds no kernel: pass a folder with build/<variant>/{METADATA_NAME}")
    chosen = choose(
        str(folder), detect_environment(), {name: _backend(build / name) for name in names}, backend
    )
    index_path = build.parent / INDEX_NAME
    index = parse_index(index_path.read_bytes(), origin=str(index_path)) if index_path.is_file() else None
    if index is not None and chosen not in index.variants:
        raise IntegrityError(f"{build / chosen} is not in {index_path}: build the package again")
    indexed = None if index is None else index.variants[chosen]
    cure = "build or copy the package again"
    return load(verify_package(build / chosen, indexed=indexed, cure=cure), chosen, None)


def _variant_names(build: Path) -> list[str]:
    if not build.is_dir():
        return []
    return [path.name for path in build.iterdir() if (path / METADATA_NAME).is_file()]


def _backend(folder: Path) -> BackendInfo:
    try:
        parse_variant(folder.name)
    except ValueError as error:
        raise InvalidKernelError(f"{folder} is not named like a variant: {error}") from None
    path = folder / METADATA_NAME
    return parse_metadata(path.read_bytes(), origin=str(path)).backend
