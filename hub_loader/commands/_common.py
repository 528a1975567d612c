"""What the loader's commands share: their arguments and how they print."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..resolver import BACKENDS


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for a program to read")


def add_kernel(parser: argparse.ArgumentParser) -> None:
    """Add the repository and what narrows it: --version or --revision, --backend."""
    parser.add_argument(
        "repo_id", metavar="ORG/NAME", help="the kernel's repository on the hub HF_ENDPOINT names"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, metavar="N", help="version N; the newest when left out")
    which.add_argument("--revision", metavar="REV", help="a branch, tag or commit")
    parser.add_argument("--backend", choices=BACKENDS, help="what torch is built for, when left out")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust-remote-code."""
    parser.add_argument(
        "--trust-remote-code",
        action="append",
        metavar="ORG/NAME",
        help="let this repository run without a signature of a key that you trust; can be repeated",
    )


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    print(json.dumps(value, indent=2))
