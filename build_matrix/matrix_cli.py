"""`khub matrix`: the cells of kernels, the whole matrix, and its upkeep."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hub_loader.errors import CacheError, UsageError

from .build_toml import BUILD_FILE, read_build_file
from .matrix import MATRIX_FILE, Cell, Matrix, Unbuildable, read_matrix
from .plan import compiler_version, plan, select
from .refresh import add_lines, missing_releases, propose
from .toolchain.cache import State, ToolchainCache
from .toolchain.everything import fetch_everything
from .toolchain.pins import LOCK_FILE, Recorder, write_lock

_WIDTH = 44


def add_matrix(parser: argparse.ArgumentParser) -> None:
    """Arguments of `khub matrix`."""
    parser.epilog = (
        "examples:\n"
        "  khub matrix                                     torch's wheels and what is compiled for each\n"
        "  khub matrix kernels_src/*                       every cell of these kernels\n"
        "  khub matrix kernels_src/paged-attention --select 'torch2{12,13}-*'\n"
        "  khub matrix refresh --write                     add lines for torch releases that the index has\n"
        "  khub matrix lock                                fetch every toolchain, rewrite the hashes (700 MB)\n"
        "  khub matrix verify                              re-hash the toolchain cache (--repair: remove the damaged)\n"
        '  khub matrix kernels_src/* --github >> "$GITHUB_OUTPUT"\n\n'
        "A kernel with stable-abi is built in stable-ABI variants, which serve every torch from that release on.\n"
        "Its exact builds are made on request: by a --select glob that names torch releases, such as 'torch213-*'."
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="KERNEL_DIR",
        help="folders that hold a build.toml; or `refresh`, `lock` or `verify`",
    )
    parser.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="GLOB",
        help="only the variants whose name matches; {a,b} is understood; may be repeated",
    )
    parser.add_argument(
        "--github", action="store_true", help="print matrix={…}, the output that a GitHub Actions job reads"
    )
    parser.add_argument("--write", action="store_true", help="of refresh: write matrix.toml")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="of verify: remove the parts that are damaged, or that nothing is known of; builds fetch them anew",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.write and args.what != ["refresh"]:
        raise UsageError("--write belongs to `khub matrix refresh`")
    if args.repair and args.what != ["verify"]:
        raise UsageError("--repair belongs to `khub matrix verify`")
    if args.what == ["refresh"]:
        return _refresh(args)
    if args.what == ["lock"]:
        return _lock()
    if args.what == ["verify"]:
        return _verify(args)
    return _kernels(args) if args.what else _releases(args)


def _kernels(args: argparse.Namespace) -> int:
    matrix = read_matrix()
    data = {}
    jobs: list[dict[str, str]] = []
    for folder in _kernel_folders(args.what):
        build = read_build_file(Path(folder).resolve())
        cells, refused = plan(build, matrix)
        if args.select:
            cells = select(cells, args.select)
        if args.github:
            jobs += [{"kernel": folder, "name": build.general.name, "select": str(cell)} for cell in cells]
            continue
        data[build.general.name] = {
            "cells": [_cell_json(cell) for cell in cells],
            "left_out": [{"name": u.name, "reason": u.reason} for u in refused],
        }
        if not args.json:
            print(build.general.name)
            for cell in cells:
                print(f"  {cell!s:<{_WIDTH}}  {_made_with(cell)}")
            for line in left_out(refused):
                print(f"  left out: {line}")
    if args.github:
        print(f"matrix={json.dumps({'include': jobs})}")
    elif args.json:
        print(json.dumps(data, indent=2))
    return 0


def _kernel_folders(paths: Sequence[str]) -> Sequence[str]:
    """`paths` without what is there and no kernel: `kernels_src/*` also matches what lies between the kernels."""
    kernels = [path for path in paths if not Path(path).exists() or (Path(path) / BUILD_FILE).is_file()]
    return kernels or paths


def left_out(refused: Iterable[Unbuildable]) -> Iterator[str]:
    """One line for each reason, with the variants it holds for."""
    names: dict[str, list[str]] = {}
    for unbuildable in refused:
        names.setdefault(unbuildable.reason, []).append(unbuildable.name)
    for reason, group in names.items():
        shown = group[0] if len(group) == 1 else f"{len(group)} variants, {group[0]} to {group[-1]}"
        yield f"{shown}: {reason}"


def _made_with(cell: Cell) -> str:
    parts = [f"torch headers {cell.torch_release}" if cell.torch_release else "no torch headers"]
    if cell.backfill:
        parts.append(f"what {cell.backfill} lacks linked in")
    if cell.capabilities:
        parts.append(f"sm {', '.join(cell.capabilities)}")
    if cell.on_request:
        parts.append("on request")
    return "  ".join(parts)


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "variant": str(cell),
        "headers": cell.torch_release,
        "backfill": cell.backfill,
        "capabilities": list(cell.capabilities),
        "on_request": cell.on_request,
    }


def _releases(args: argparse.Namespace) -> int:
    """The whole matrix: a line for each of torch's wheels, and the variants compiled against it."""
    rows = list(_rows(read_matrix()))
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'torch':<8} {'arch':<8} {'wheel':<6} {'C++ ABI':<7} {'Pythons':<10} exact variants")
    for row in rows:
        wheel = "cpu" if row["cuda"] is None else f"cu{row['cuda'].replace('.', '')}"
        pythons = f"{row['python'][0]}-{row['python'][1]}"
        abi = "cxx11" if row["cxx11_abi"] else "cxx98"
        backends = ", ".join(row["exact"])
        print(f"{row['torch']:<8} {row['arch']:<8} {wheel:<6} {abi:<7} {pythons:<10} {backends}")
    return 0


def _rows(matrix: Matrix) -> Iterator[dict[str, Any]]:
    for torch in matrix.torch:
        for wheel in torch.wheels:
            backends = ["cpu"]
            if wheel.cuda is not None and (compiler := compiler_version(wheel.cuda, matrix.cuda)):
                backends.append(f"cu{compiler[0]}{compiler[1]}")
            yield {
                "torch": torch.release,
                "arch": wheel.arch,
                "cuda": None if wheel.cuda is None else f"{wheel.cuda[0]}.{wheel.cuda[1]}",
                "cxx11_abi": wheel.cxx11_abi,
                "python": [f"{major}.{minor}" for major, minor in torch.pythons],
                "exact": backends,
            }


def _refresh(args: argparse.Namespace) -> int:
    matrix = read_matrix()
    lines = [propose(release) for release in missing_releases(matrix)]
    if args.write and lines:
        add_lines(lines)
    if args.json:
        print(json.dumps({"missing": lines, "written": bool(args.write and lines)}, indent=2))
    elif not lines:
        print("the matrix has every torch release that the index has")
    else:
        print("\n".join(lines))
        if args.write:
            print(f"written to {MATRIX_FILE.name}; now `khub matrix lock`", file=sys.stderr)
    return 0


def _lock() -> int:
    recorder = Recorder()
    with tempfile.TemporaryDirectory(prefix="khub-lock-") as folder:
        fetch_everything(ToolchainCache(Path(folder), recorder), read_matrix())
    write_lock(recorder.digests)
    print(f"{LOCK_FILE.name}: {len(recorder.digests)} files")
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Re-hash the toolchain cache. Damage that was repaired is told and is no failure."""
    cache = ToolchainCache()
    states = dict(cache.verify())
    suspect = [part for part, state in states.items() if state is not State.WHOLE]
    damaged = [part for part, state in states.items() if state is State.DAMAGED]
    for part in suspect if args.repair else ():
        cache.remove(part)
    if args.json:
        parts = {part: state.value for part, state in states.items()}
        print(json.dumps({"parts": parts, "removed": suspect if args.repair else []}, indent=2))
    else:
        for part in suspect:
            print(f"{states[part].value:<8} {'removed ' if args.repair else ''}{part}")
        print(f"{cache.root}: {len(states) - len(suspect)} of {len(states)} parts are what was made")
    if damaged and not args.repair:
        raise CacheError(
            f"{', '.join(damaged)} in {cache.root} changed after being made: "
            "`khub matrix verify --repair` removes what is damaged, and the next build fetches it anew"
        )
    return 0
