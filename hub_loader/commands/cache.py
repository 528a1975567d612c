"""`khub cache ls`, `gc`, `verify` and `clear`: what is in the cache, and how much of it stays."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ..config import Config, load_config, parse_size
from ..errors import InvalidKernelError, UsageError
from ..gc import StoredVariant, collect, stored_variants
from ..manifest import METADATA_NAME, parse_metadata
from ..store import Store
from ._common import add_json, print_json
from .verify import report, verify_cache


@dataclass(frozen=True)
class CachedVariant:
    """A variant in the cache; `size` in bytes, `used` in seconds since 1970.

    `kernel` is None where metadata.json cannot be read; `built` says that it was compiled here.
    """

    kernel: str | None
    id: str | None
    size: int
    used: float
    path: str
    built: bool = False

    def __str__(self) -> str:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        path = f"{self.path}  (built here)" if self.built else self.path
        return f"{self.kernel or 'unreadable':<28}{self.size / 1e6:>9.2f} MB  {used}  {path}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub cache`."""
    parser.epilog = (
        "examples:\n  khub cache ls\n  khub cache gc --max-size 5GB\n  khub cache verify\n  khub cache clear\n\n"
        "gc removes the variants that were used longest ago, fetched or built here, and downloads that nobody went on "
        "with for a day. It leaves what a running process has open or was used within the last hour. "
        "KHUB_CACHE_MAX_SIZE=5GB does the same after each download."
    )
    parser.add_argument(
        "action",
        choices=tuple(_ACTIONS),
        help="ls: show the variants in the cache; gc: make it smaller; verify: check every byte; clear: remove it all",
    )
    parser.add_argument(
        "--max-size", type=_size, metavar="SIZE", help="for gc: like 5GB; KHUB_CACHE_MAX_SIZE when left out"
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    config = load_config()
    if args.max_size is not None and args.action != "gc":
        raise UsageError(f"--max-size says nothing about {args.action}: leave it out, or use `khub cache gc`")
    return _ACTIONS[args.action](Store(config.cache), config, args)


def _list(store: Store, config: Config, args: argparse.Namespace) -> int:
    variants = [_describe(variant) for variant in stored_variants(store)]
    if args.json:
        print_json({"cache": str(store.root), "variants": [asdict(variant) for variant in variants]})
        return 0
    for variant in variants:
        print(variant)
    print(f"{_total(variants)} in {store.root}")
    return 0


def _clear(store: Store, config: Config, args: argparse.Namespace) -> int:
    variants = [_describe(variant) for variant in stored_variants(store)]
    store.clear()
    if args.json:
        print_json({"cache": str(store.root), "removed": [asdict(variant) for variant in variants]})
    else:
        print(f"removed {_total(variants)} in {store.root}")
    return 0


def _collect(store: Store, config: Config, args: argparse.Namespace) -> int:
    max_size = config.max_cache if args.max_size is None else args.max_size
    if max_size is None:
        raise UsageError("say how much may stay: --max-size 5GB, or KHUB_CACHE_MAX_SIZE")
    described = {variant.path: _describe(variant) for variant in stored_variants(store)}
    found = collect(store, max_size)
    removed = [described.get(variant.path) or _describe(variant) for variant in found.removed]
    kept = [(described.get(variant.path) or _describe(variant), reason) for variant, reason in found.kept]
    if args.json:
        kept_json = [{**asdict(variant), "reason": reason} for variant, reason in kept]
        print_json(
            {
                "cache": str(store.root),
                "removed": [asdict(variant) for variant in removed],
                "kept": kept_json,
                "size": found.size,
                "leftovers": found.leftovers,
            }
        )
        return 0
    for variant in removed:
        print(f"removed  {variant}")
    for variant, reason in kept:
        print(f"kept     {variant}: {reason}")
    print(f"removed {_total(removed)}, left {found.size / 1e6:.2f} MB in {store.root}")
    return 0


def _verify(store: Store, config: Config, args: argparse.Namespace) -> int:
    return report(store, list(verify_cache(store)), args.json)


_ACTIONS: dict[str, Callable[[Store, Config, argparse.Namespace], int]] = {
    "ls": _list,
    "list": _list,
    "gc": _collect,
    "verify": _verify,
    "clear": _clear,
}


def _total(variants: list[CachedVariant]) -> str:
    return f"{len(variants)} variants, {sum(variant.size for variant in variants) / 1e6:.2f} MB"


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _describe(variant: StoredVariant) -> CachedVariant:
    kernel = kernel_id = None
    built = (
        sorted(variant.path.glob(f"build/*/{METADATA_NAME}")) if variant.path.parent.name == "builds" else []
    )
    path = built[0] if built else variant.path / METADATA_NAME
    try:
        metadata = parse_metadata(path.read_bytes(), origin=str(path))
    except (OSError, InvalidKernelError):
        pass
    else:
        kernel, kernel_id = f"{metadata.name} v{metadata.version} {metadata.backend.type}", metadata.id
    return CachedVariant(kernel, kernel_id, variant.size, variant.used, str(variant.path), bool(built))
