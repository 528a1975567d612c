"""`khub list ORG/NAME`: the versions of a kernel."""

from __future__ import annotations

import argparse

from ..config import load_config
from ..hub import Hub, check_repo_id
from ..request import versions
from ._common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub list`."""
    parser.epilog = "example:\n  khub list org/paged-attention"
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the kernel's repository on the hub")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    check_repo_id(args.repo_id)
    refs = Hub(load_config()).refs(args.repo_id)
    found = [{"version": n, "commit": refs.commits[f"v{n}"]} for n in reversed(versions(refs.commits))]
    if args.json:
        print_json({"repo_id": refs.repo_id, "versions": found})
        return 0
    for entry in found:
        newest = "  newest" if entry is found[0] else ""
        print(f"version {entry['version']:<4} {entry['commit']}{newest}")
    if not found:
        print(
            f"{refs.repo_id} has no version; its branches and tags: {', '.join(sorted(refs.commits)) or 'none'}"
        )
    return 0
