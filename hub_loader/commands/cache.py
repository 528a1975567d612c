"""`khub cache list` and `khub cache clear`: what is in the cache."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import load_config
from ..errors import InvalidKernelError
from ..manifest import METADATA_NAME, parse_metadata
from ..store import Store
from ._common import add_json, print_json


@dataclass(frozen=True)
class CachedVariant:
    """A variant in the cache; `size` in bytes, `kernel` None where metadata.json cannot be read."""

    kernel: str | None
    id: str | None
    size: int
    path: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub cache`."""
    parser.epilog = "examples:\n  khub cache list\n  khub cache clear"
    parser.add_argument(
        "action", choices=("list", "clear"), help="show the variants in the cache, or remove them all"
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    store = Store(load_config().cache)
    variants = [_describe(folder) for folder in store.variants()]
    if args.action == "clear":
        store.clear()
    if args.json:
        print_json({"cache": str(store.root), args.action: [asdict(variant) for variant in variants]})
        return 0
    if args.action == "list":
        for variant in variants:
            print(f"{variant.kernel or 'unreadable':<28}{variant.size / 1e6:>9.2f} MB  {variant.path}")
    total = sum(variant.size for variant in variants) / 1e6
    removed = "removed " if args.action == "clear" else ""
    print(f"{removed}{len(variants)} variants, {total:.2f} MB in {store.root}")
    return 0


def _describe(folder: Path) -> CachedVariant:
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    try:
        metadata = parse_metadata((folder / METADATA_NAME).read_bytes(), origin=str(folder))
    except (OSError, InvalidKernelError):
        return CachedVariant(None, None, size, str(folder))
    return CachedVariant(
        f"{metadata.name} v{metadata.version} {metadata.backend.type}", metadata.id, size, str(folder)
    )
