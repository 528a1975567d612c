"""`khub get ORG/NAME`: fetch the fitting variant into the cache and verify it."""

from __future__ import annotations

import argparse

from ..kernels import fetch_kernel
from ._common import add_json, add_kernel, add_trust, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub get`."""
    parser.epilog = (
        "example, so that a container needs no network later:\n"
        "  KERNELS_CACHE=/image/cache khub get org/paged-attention --version 1"
    )
    add_kernel(parser)
    add_trust(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    kernel = fetch_kernel(
        args.repo_id,
        version=args.version,
        revision=args.revision,
        backend=args.backend,
        trust_remote_code=args.trust_remote_code,
    )
    if args.json:
        print_json(
            {
                "repo_id": kernel.repo_info.repo_id,
                "revision": kernel.repo_info.revision,
                "variant": kernel.variant,
                "id": kernel.metadata.id,
                "path": str(kernel.path),
            }
        )
    else:
        print(f"{kernel.repo_info.repo_id} at {kernel.repo_info.revision[:12]}: {kernel.variant}, verified")
        print(kernel.path)
    return 0
