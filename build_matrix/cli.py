"""The author's side of `khub`: build, audit, publish; `matrix` is in `matrix_cli.py`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hub_loader.errors import AuditError, UsageError
from hub_loader.manifest import METADATA_NAME, parse_metadata
from hub_loader.trust.sign import KEY_VARIABLE, signing_key
from hub_loader.variant import parse_variant

from .audit import Promise
from .build import Outcome
from .build_file import BuildFile
from .build_toml import read_build_file
from .console import Console, objects
from .executors import EXECUTORS, build_cells, executor_named
from .gates import Verdict, static_verdicts, unique_ids
from .load import CHECK_FILE, Loader
from .matrix import Cell, Matrix, read_matrix
from .matrix_cli import add_matrix as add_matrix  # an entry point, like those below
from .matrix_cli import left_out
from .oidc import upload_token
from .plan import plan, select
from .publish import publish
from .reproduce import reproduce
from .toolchain.cache import ToolchainCache
from .toolchain.host import find_compiler
from .toolchain.torch_sdk import PACKAGE as TORCH
from .toolchain.traffic import Traffic

_LOAD_HELP = (
    "also load each variant in the oldest and the newest torch its name promises, and run the kernel's "
    "tests/load_check.py there (fetches about 140 MB per torch, once); aarch64 under qemu, minutes for each torch"
)


def add_build(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub build`."""
    parser.epilog = (
        "examples:\n"
        "  khub build kernels_src/paged-attention\n"
        "  khub build kernels_src/paged-attention --select '*cu130*' --out dist/paged-attention\n"
        "  khub build kernels_src/paged-attention --load\n"
        "  khub build kernels_src/paged-attention --check\n\n"
        "The first build fetches torch's headers (11 MB) and, for CUDA, the compiler (100 MB) through pip into\n"
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
    parser.add_argument("--load", action="store_true", help=_LOAD_HELP)
    parser.add_argument(
        "--check",
        action="store_true",
        help="build each variant twice, in two folders, and compare the packages byte for byte; writes nothing",
    )
    parser.set_defaults(run=_build)


def add_audit(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub audit`."""
    parser.epilog = (
        "examples:\n"
        "  khub audit dist/paged-attention\n"
        "  khub audit dist/paged-attention --load --source kernels_src/paged-attention\n\n"
        "What a variant promises by its name is read off its library: symbol versions, libraries, exports, archs.\n"
        "--load also proves it: a process with that torch loads the variant as a user would. CUDA variants are\n"
        "loaded with every symbol resolved; their operators need a GPU and are not run."
    )
    parser.add_argument("package", type=Path, help="a folder that `khub build` wrote")
    parser.add_argument("--load", action="store_true", help=_LOAD_HELP)
    parser.add_argument(
        "--source",
        type=Path,
        help="the kernel's folder, for its tests/load_check.py; without it --load imports only",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(run=_audit)


def add_publish(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub publish`."""
    parser.epilog = (
        "examples:\n"
        "  HF_ENDPOINT=http://127.0.0.1:8000 HF_TOKEN=… khub publish dist/paged-attention org/paged-attention \\\n"
        "      --sign-key release.key\n"
        "  khub publish dist/paged-attention org/paged-attention --source kernels_src/paged-attention\n\n"
        "Without a key, and without a signature of `khub sign` in the package, it is published unsigned: get_kernel\n"
        "loads it only where trust_remote_code allows it.\n\n"
        "With --source a machine that no variant fits can compile the kernel (get_kernel with allow_build=True).\n"
        "Hidden files, tests, benchmarks, docs and build outputs stay here; so does everything without --source."
    )
    parser.add_argument("package", type=Path, help="a folder that `khub build` wrote")
    parser.add_argument(
        "repo_id", metavar="ORG/NAME", help="the kernel repository; created when it is not there"
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FOLDER",
        help="publish the kernel's source as well: the folder that the package was built from",
    )
    parser.add_argument("--message", help="commit message")
    parser.add_argument(
        "--oidc",
        action="store_true",
        help="in GitHub Actions: exchange the job's OIDC token for one of this repository, instead of HF_TOKEN",
    )
    parser.add_argument(
        "--sign-key",
        type=Path,
        metavar="FILE",
        help=f"sign the version with this private key of `khub keygen`; {KEY_VARIABLE} when left out",
    )
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
    if args.check:
        return _check(build, chosen, matrix, args.json)
    for line in left_out(refused):
        print(f"  left out  {line}", file=say)
    console = Console(say)
    if args.load and args.executor != "local":
        raise UsageError(
            "--load runs on this machine: build with --executor local, or run khub audit --load after"
        )
    executor = executor_named(args.executor)
    cache = ToolchainCache()
    loader = Loader(cache, find_compiler(), matrix) if args.load else None
    outcomes = []
    for outcome in build_cells(
        build, chosen, matrix, out.resolve(), cache, console.started, executor, loader
    ):
        outcomes.append(outcome)
        console.finished(outcome)
    console.table(outcomes)
    console.downloaded(cache.traffic)
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if args.json:
        # A cluster's machines fetch for themselves, uncounted.
        downloaded = _traffic_json(cache.traffic) if args.executor == "local" else None
        cells_json = [_outcome_json(o) for o in outcomes]
        print(json.dumps({"package": str(out), "cells": cells_json, "downloaded": downloaded}, indent=2))
    elif not failed:
        print(f"{build.general.name} version {build.general.version}: {len(outcomes)} variants in {out}")
    for error in failed:
        print(f"khub: {error}", file=sys.stderr)
    return failed[0].exit_code if failed else 0


def _check(build: BuildFile, cells: list[Cell], matrix: Matrix, as_json: bool) -> int:
    rows = []
    for comparison in reproduce(build, cells, matrix, ToolchainCache()):
        rows.append(
            {"variant": str(comparison.cell), "equal": comparison.equal, "differing": comparison.differing}
        )
        if not as_json:
            verdict = f"{comparison.equal} files, twice the same bytes"
            print(f"{comparison.cell!s:<44}  {'; '.join(comparison.differing) or verdict}", flush=True)
    if as_json:
        print(json.dumps(rows, indent=2))
    return AuditError.exit_code if any(row["differing"] for row in rows) else 0


def _traffic_json(traffic: Traffic) -> dict[str, int]:
    """Bytes fetched by this run, in total and for torch's headers."""
    return {"bytes": traffic.total, "torch_headers": traffic.of(TORCH)}


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "variant": str(outcome.cell),
        "seconds": round(outcome.seconds, 3),
        "reused": outcome.reused,
        "objects": objects(outcome.compiled),
        "size": outcome.size,
        "gates": [_verdict_json(verdict) for verdict in outcome.verdicts],
        "folder": None if outcome.folder is None else str(outcome.folder),
        "log": None if outcome.log is None else str(outcome.log),
        "error": None if outcome.error is None else str(outcome.error),
    }


def _audit(args: argparse.Namespace) -> int:
    folders = sorted(path for path in args.package.glob("build/*") if not path.name.startswith("."))
    if not folders:
        raise UsageError(
            f"{args.package} holds no build/<variant> folder: name a folder that `khub build` wrote"
        )
    matrix = read_matrix()
    loader = Loader(ToolchainCache(), find_compiler(), matrix) if args.load else None
    check = None if args.source is None else args.source / CHECK_FILE
    if check is not None and not check.is_file():
        raise UsageError(f"{check} does not exist: write it, or leave --source out to import only")
    found: dict[str, list[Verdict]] = {}
    ids = []
    for folder in folders:
        metadata = parse_metadata((folder / METADATA_NAME).read_bytes(), origin=str(folder / METADATA_NAME))
        ids.append((folder.name, metadata.id))
        promise = Promise(parse_variant(folder.name), metadata.id, matrix.baseline, metadata.backend.archs)
        verdicts = [v for path in sorted(folder.rglob("*.so")) for v in static_verdicts(path, promise)]
        if loader is not None:
            verdicts += loader.verdicts(folder, promise.variant, check)
        found[folder.name] = verdicts
    for name, verdict in zip(found, unique_ids(ids), strict=True):
        found[name].append(verdict)
    if args.json:
        print(
            json.dumps({n: [_verdict_json(v) for v in verdicts] for n, verdicts in found.items()}, indent=2)
        )
    else:
        for name, verdicts in found.items():
            broken = [str(verdict) for verdict in verdicts if verdict.passed is False]
            print(f"{name:<44}  {'; '.join(broken) or 'keeps its promises'}")
            for verdict in verdicts:
                if verdict.gate.startswith("load") and verdict.passed is not False:
                    print(f"  {verdict}")
    failed = any(verdict.passed is False for verdicts in found.values() for verdict in verdicts)
    return AuditError.exit_code if failed else 0


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {"gate": verdict.gate, "passed": verdict.passed, "sentence": verdict.sentence}


def _publish(args: argparse.Namespace) -> int:
    token = upload_token(args.repo_id) if args.oidc else None
    key = signing_key(args.sign_key)
    done = publish(args.package, args.repo_id, message=args.message, source=args.source, token=token, key=key)
    if args.json:
        data = {
            "repo_id": done.repo_id,
            "branch": done.branch,
            "commit": done.commit,
            "variants": done.variants,
            "written": done.written,
            "removed": done.removed,
            "signed_by": done.signed_by,
            "targets": done.targets,
        }
        print(json.dumps(data, indent=2))
    else:
        what = (
            f"{done.written} files written, {done.removed} removed"
            if done.written + done.removed
            else "no change"
        )
        where = f"{done.repo_id} {done.branch}"
        who = "not signed" if done.signed_by is None else f"signed by the key {done.signed_by[:16]}"
        who += "" if done.targets is None else f"; in version {done.targets} of the TUF targets"
        print(f"{where}: {len(done.variants)} variants at commit {done.commit[:12]} ({what}; {who})")
    return 0
