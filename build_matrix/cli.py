"""The author's side of `khub`: matrix, build, audit, publish."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hub_loader.errors import AuditError, UsageError
from hub_loader.manifest import METADATA_NAME, parse_metadata
from hub_loader.variant import parse_variant

from .build import Outcome, audit_file, build_cells
from .build_toml import read_build_file
from .matrix import Cell, plan, read_matrix, select
from .publish import publish
from .toolchain.cache import ToolchainCache


def add_build(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub build`."""
    parser.epilog = (
        "examples:\n"
        "  khub build kernels_src/paged-attention\n"
        "  khub build kernels_src/paged-attention --select '*cu130*' --out dist/paged-attention\n\n"
        "The first build fetches torch's headers (12 MB) and, for CUDA, the compiler (100 MB) through pip into\n"
        "KHUB_TOOLCHAINS (default: ~/.cache/kernel-hub/toolchains). Neither torch nor a GPU is needed."
    )
    _add_source(parser)
    parser.add_argument("--out", type=Path, help="package folder to write (default: dist/<kernel name>)")
    parser.set_defaults(run=_build)


def add_matrix(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub matrix`."""
    parser.epilog = "example:\n  khub matrix kernels_src/paged-attention --select 'torch-stable-*'"
    _add_source(parser)
    parser.set_defaults(run=_matrix)


def add_audit(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub audit`."""
    parser.epilog = "example:\n  khub audit dist/paged-attention"
    parser.add_argument("package", type=Path, help="a folder that `khub build` wrote")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(run=_audit)


def add_publish(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub publish`."""
    parser.epilog = (
        "example:\n"
        "  HF_ENDPOINT=http://127.0.0.1:8000 HF_TOKEN=… khub publish dist/paged-attention org/paged-attention"
    )
    parser.add_argument("package", type=Path, help="a folder that `khub build` wrote")
    parser.add_argument(
        "repo_id", metavar="ORG/NAME", help="the kernel repository; created when it is not there"
    )
    parser.add_argument("--message", help="commit message")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(run=_publish)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="the kernel's folder, the one that holds build.toml")
    parser.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="GLOB",
        help="build only the variants whose name matches; {a,b} is understood; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def _build(args: argparse.Namespace) -> int:
    build = read_build_file(args.path.resolve())
    matrix = read_matrix()
    cells, refused = plan(build, matrix)
    chosen = select(cells, args.select)
    out = args.out or Path("dist") / build.general.name
    say = sys.stderr if args.json else sys.stdout
    for unbuildable in refused:
        print(f"  left out  {unbuildable.name}: {unbuildable.reason}", file=say)

    def started(cell: Cell) -> None:
        if sys.stdout.isatty() and not args.json:
            print(f"  building  {cell} …", end="\r", flush=True)

    outcomes = []
    for outcome in build_cells(build, chosen, matrix, out.resolve(), ToolchainCache(), started):
        outcomes.append(outcome)
        print(_outcome_line(outcome), file=say, flush=True)
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if args.json:
        print(json.dumps({"package": str(out), "cells": [_outcome_json(o) for o in outcomes]}, indent=2))
    elif not failed:
        print(f"{build.general.name} version {build.general.version}: {len(outcomes)} variants in {out}")
    for error in failed:
        print(f"khub: {error}", file=sys.stderr)
    return failed[0].exit_code if failed else 0


def _outcome_line(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"  FAILED    {outcome.cell}  after {outcome.seconds:.1f} s"
    return f"  {'reused' if outcome.reused else 'built':<8}  {outcome.cell}  {outcome.seconds:.1f} s"


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "variant": str(outcome.cell),
        "seconds": round(outcome.seconds, 3),
        "reused": outcome.reused,
        "folder": None if outcome.folder is None else str(outcome.folder),
        "error": None if outcome.error is None else str(outcome.error),
    }


def _matrix(args: argparse.Namespace) -> int:
    cells, refused = plan(read_build_file(args.path.resolve()), read_matrix())
    chosen = select(cells, args.select)
    if args.json:
        rows = [
            {
                "variant": str(c),
                "headers": c.torch_release or c.python_release,
                "capabilities": list(c.capabilities),
            }
            for c in chosen
        ]
        left_out = [{"name": u.name, "reason": u.reason} for u in refused]
        print(json.dumps({"cells": rows, "left_out": left_out}, indent=2))
        return 0
    for cell in chosen:
        archs = f"  sm {', '.join(cell.capabilities)}" if cell.capabilities else ""
        headers = f"torch headers {cell.torch_release}"
        if cell.torch_release is None:
            headers = f"Python headers {cell.python_release}, {cell.pybind11}"
        print(f"{cell!s:<44}  {headers}{archs}")
    for unbuildable in refused:
        print(f"{unbuildable.name:<44}  left out: {unbuildable.reason}")
    return 0


def _audit(args: argparse.Namespace) -> int:
    folders = sorted(path for path in args.package.glob("build/*") if not path.name.startswith("."))
    if not folders:
        raise UsageError(
            f"{args.package} holds no build/<variant> folder: name a folder that `khub build` wrote"
        )
    matrix = read_matrix()
    found: dict[str, list[str]] = {}
    for folder in folders:
        metadata = parse_metadata((folder / METADATA_NAME).read_bytes(), origin=str(folder / METADATA_NAME))
        variant = parse_variant(folder.name)
        found[folder.name] = [
            violation
            for library in sorted(folder.rglob("*.so"))
            for violation in audit_file(library, variant, metadata.id, matrix, metadata.backend.archs)
        ]
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for name, violations in found.items():
            print(f"{name:<44}  {'; '.join(violations) or 'keeps its promises'}")
    return AuditError.exit_code if any(found.values()) else 0


def _publish(args: argparse.Namespace) -> int:
    done = publish(args.package, args.repo_id, message=args.message)
    if args.json:
        data = {
            "repo_id": done.repo_id,
            "branch": done.branch,
            "commit": done.commit,
            "variants": done.variants,
        }
        print(json.dumps(data, indent=2))
    else:
        print(f"{done.repo_id} {done.branch}: {len(done.variants)} variants at commit {done.commit[:12]}")
    return 0
