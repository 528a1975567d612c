"""`khub explain ORG/NAME`: each variant, chosen or why not."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..errors import NoMatchingVariantError
from ..kernels import explain
from ._common import add_json, add_kernel, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub explain`."""
    parser.epilog = (
        "examples:\n  khub explain org/paged-attention\n"
        "  khub explain org/paged-attention --backend cpu --json\n\n"
        f"Exits with {NoMatchingVariantError.exit_code} when no variant fits."
    )
    add_kernel(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    answer = explain(args.repo_id, version=args.version, revision=args.revision, backend=args.backend)
    if args.json:
        print_json(asdict(answer))
    else:
        print(f"{answer.repo_id} at {answer.revision[:12]}")
        width = max((len(decision.variant) for decision in answer.decisions), default=0)
        for decision in answer.decisions:
            verdict = "chosen" if decision.variant == answer.chosen else "fits" if decision.accepted else "no"
            print(f"  {decision.variant:<{width}}  {verdict:<6}  {decision.reason}")
        if answer.chosen is None:
            print("  no variant fits here")
    return 0 if answer.chosen is not None else NoMatchingVariantError.exit_code
