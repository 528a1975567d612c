"""`khub lock [DIR]`: pin a project's kernels in kernels.lock."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import load_config
from ..policy import make_policy
from ..project import lock_kernels, read_dependencies, write_lock
from ._common import add_json, add_trust, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub lock`."""
    parser.epilog = (
        "Reads [tool.kernels.dependencies] of DIR/pyproject.toml, where a kernel stands with its version:\n"
        '  "org/paged-attention" = 1\n\n'
        "examples:\n  khub lock\n  khub lock path/to/project --stock"
    )
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=Path(), help="the project")
    parser.add_argument(
        "--stock", action="store_true", help="commits alone, the only form that the `kernels` package reads"
    )
    add_trust(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    config = load_config()
    policy = make_policy(args.trust_remote_code, public=config.is_public)
    locked = lock_kernels(config, read_dependencies(args.folder), policy)
    path = write_lock(args.folder, locked, stock=args.stock)
    kernels = [
        {
            "repo_id": kernel.request.repo_id,
            "commit": kernel.commit,
            "variants": sorted(kernel.variants),
            "size": sum(variant.size for variant in kernel.variants.values()),
        }
        for kernel in locked.kernels
    ]
    if args.json:
        print_json({"lock": str(path), "kernels": kernels})
        return 0
    for kernel in locked.kernels:
        print(f"{kernel.request!s:<40} {kernel.commit[:12]}  {len(kernel.variants)} variants")
    print(path)
    return 0
