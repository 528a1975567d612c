"""`khub sync [DIR]`: bring what kernels.lock names into a cache."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from ..config import CACHE_NAME, load_config
from ..environment import detect_environment
from ..locked import find_lock
from ..project import sync
from ..resolver import BACKENDS
from ._common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub sync`."""
    parser.epilog = (
        "examples:\n  khub sync\n"
        "  khub sync --all-variants --into /image/kernels\n"
        "then, where there is no network:\n"
        "  KERNELS_CACHE=/image/kernels HF_HUB_OFFLINE=1 python app.py"
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, default=Path(), help="the folder with kernels.lock"
    )
    parser.add_argument("--all-variants", action="store_true", help="not only those that fit this machine")
    parser.add_argument("--into", type=Path, metavar="CACHE", help="this folder instead of KERNELS_CACHE")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="cuda if torch is built for it, else cpu, when left out"
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    config = load_config()
    if args.into is not None:
        config = replace(config, cache=args.into.absolute() / CACHE_NAME)
    found = sync(
        config,
        detect_environment(),
        find_lock(args.folder),
        backend=args.backend,
        all_variants=args.all_variants,
    )
    if args.json:
        print_json({"cache": str(config.cache), "variants": [asdict(one) for one in found]})
        return 0
    for one in found:
        print(f"{one.repo_id} at {one.commit[:12]}: {one.variant}, {one.size / 1e6:.2f} MB, verified")
    print(f"{len(found)} variants in {config.cache}")
    return 0
