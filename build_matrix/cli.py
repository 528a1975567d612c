"""The author's side of `khub`: matrix, build, audit, publish."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hub_loader.errors import AuditError, UsageError
from hub_loader.manifest import METADATA_NAME, parse_metadata
from hub_loader.variant import parse_variant

from .build import Outcome, audit_file
from .build_toml import read_build_file
from .console import Console, objects
from .executors import EXECUTORS, build_cells, executor_named
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
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        help="where cells are built: here, or as tasks of the Ray cluster that RAY_ADDRESS names (default: local)",
    )
    parser.set_defaults(run=_build)


def add_matrix(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub matrix`."""
    parser.epilog = (
        "examples:\n"
        "  khub matrix kernels_src/paged-attention --select 'torch-stable-*'\n"
        '  khub matrix kernels_src/* --github >> "$GITHUB_OUTPUT"'
    )
    _add_source(parser, nargs="+")
    parser.add_argument(
        "--github", action="store_true", help="print matrix={…}, the output that a GitHub Actions job reads"
    )
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


def _add_source(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "path", type=Path, nargs=nargs, help="the kernel's folder, the one that holds build.toml"
    )
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
    console = Console(say)
    executor = executor_named(args.executor)
    outcomes = []
    for outcome in build_cells(
        build, chosen, matrix, out.resolve(), ToolchainCache(), console.started, executor
    ):
        outcomes.append(outcome)
        console.finished(outcome)
    console.table(outcomes)
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if args.json:
        print(json.dumps({"package": str(out), "cells": [_outcome_json(o) for o in outcomes]}, indent=2))
    elif not failed:
        print(f"{build.general.name} version {build.general.version}: {len(outcomes)} variants in {out}")
    for error in failed:
        print(f"khub: {error}", file=sys.stderr)
    return failed[0].exit_code if failed else 0


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "variant": str(outcome.cell),
        "seconds": round(outcome.seconds, 3),
        "reused": outcome.reused,
        "objects": objects(outcome.compiled),
        "size": outcome.size,
        "folder": None if outcome.folder is None else str(outcome.folder),
        "log": None if outcome.log is None else str(outcome.log),
        "error": None if outcome.error is None else str(outcome.error),
    }


def _matrix(args: argparse.Namespace) -> int:
    matrix = read_matrix()
    plans = {path: plan(read_build_file(path.resolve()), matrix) for path in args.path}
    every = [cell for cells, _ in plans.values() for cell in cells]
    wanted = set(map(str, select(every, args.select)))
    chosen = {path: [cell for cell in cells if str(cell) in wanted] for path, (cells, _) in plans.items()}
    if args.github:
        print(f"matrix={json.dumps(github_matrix(chosen))}")
        return 0
    if args.json:
        rows = [
            {
                "kernel": str(path),
                "variant": str(c),
                "headers": c.torch_release or c.python_release,
                "capabilities": list(c.capabilities),
            }
            for path, cells in chosen.items()
            for c in cells
        ]
        left_out = [
            {"kernel": str(path), "name": u.name, "reason": u.reason}
            for path, (_, refused) in plans.items()
            for u in refused
        ]
        print(json.dumps({"cells": rows, "left_out": left_out}, indent=2))
        return 0
    for path, (_, refused) in plans.items():
        if len(plans) > 1:
            print(path)
        for cell in chosen[path]:
            archs = f"  sm {', '.join(cell.capabilities)}" if cell.capabilities else ""
            release = "" if cell.torch_release is None else f"  torch headers {cell.torch_release}"
            if cell.python_release is not None:
                release = f"  Python headers {cell.python_release}, {cell.pybind11}"
            print(f"{cell!s:<44}{release}{archs}".rstrip())
        for unbuildable in refused:
            print(f"{unbuildable.name:<44}  left out: {unbuildable.reason}")
    return 0


def github_matrix(chosen: Mapping[Path, Sequence[Cell]]) -> dict[str, list[dict[str, str]]]:
    """One GitHub Actions job for each cell: the kernel's folder and name, and what to give `--select`."""
    return {
        "include": [
            {"kernel": path.as_posix(), "name": path.resolve().name, "select": str(cell)}
            for path, cells in chosen.items()
            for cell in cells
        ]
    }


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
            "written": done.written,
            "removed": done.removed,
        }
        print(json.dumps(data, indent=2))
    else:
        what = (
            f"{done.written} files written, {done.removed} removed"
            if done.written + done.removed
            else "no change"
        )
        where = f"{done.repo_id} {done.branch}"
        print(f"{where}: {len(done.variants)} variants at commit {done.commit[:12]} ({what})")
    return 0
