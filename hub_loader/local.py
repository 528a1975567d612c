"""Find a kernel in a folder: the proofs of `get_kernel` without a hub."""

from __future__ import annotations

from pathlib import Path

from .environment import Environment
from .errors import IntegrityError, InvalidKernelError, UsageError
from .manifest import INDEX_NAME, METADATA_NAME, BackendInfo, parse_index, parse_metadata
from .resolver import choose
from .variant import parse_variant
from .verify import VerifiedPackage, verify_package


def find_local(path: Path, environment: Environment, backend: str | None) -> tuple[VerifiedPackage, str]:
    """The variant below `path` that fits best, proven; and its name.

    Args:
        path: a package folder (index.json and build/), its build folder, or the folder of one variant.

    Raises:
        UsageError: there is no kernel package at `path`.
        NoMatchingVariantError, IntegrityError, InvalidKernelError
    """
    folder = path.absolute()
    if (folder / METADATA_NAME).is_file():
        build, names = folder.parent, [folder.name]
    else:
        build = folder / "build" if (folder / "build").is_dir() else folder
        names = _variant_names(build)
    if not names:
        raise UsageError(f"{folder} holds no kernel: pass a folder with build/<variant>/{METADATA_NAME}")
    chosen = choose(str(folder), environment, {name: backend_in(build / name) for name in names}, backend)
    index_path = build.parent / INDEX_NAME
    index = parse_index(index_path.read_bytes(), origin=str(index_path)) if index_path.is_file() else None
    if index is not None and chosen not in index.variants:
        raise IntegrityError(f"{build / chosen} is not in {index_path}: build the package again")
    indexed = None if index is None else index.variants[chosen]
    cure = "build or copy the package again"
    return verify_package(build / chosen, indexed=indexed, cure=cure, is_own=True), chosen


def _variant_names(build: Path) -> list[str]:
    if not build.is_dir():
        return []
    return [path.name for path in build.iterdir() if (path / METADATA_NAME).is_file()]


def backend_in(folder: Path) -> BackendInfo:
    """What the metadata of a variant's folder says of its backend. Raises InvalidKernelError."""
    try:
        parse_variant(folder.name)
    except ValueError as error:
        raise InvalidKernelError(f"{folder} is not named like a variant: {error}") from None
    path = folder / METADATA_NAME
    return parse_metadata(path.read_bytes(), origin=str(path)).backend
