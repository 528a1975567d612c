"""`khub bench`: the benchmarks of a source checkout, each a program of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ..errors import UsageError

NAMES = ("kernels", "loader", "build", "registry")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub bench`."""
    parser.epilog = (
        "examples:\n  khub bench kernels --packages .demo/dist --model llama-3-8b --quick\n"
        "  khub bench loader --help    what a benchmark takes, and what its figures mean"
    )
    parser.add_argument("benchmark", choices=NAMES, help="what to measure")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the benchmark's own; --help lists them")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    root = find_checkout([Path.cwd(), Path(__file__).resolve().parents[2]])
    program = root / "benchmarks" / args.benchmark
    start = ["-m", f"benchmarks.{program.name}"] if program.is_dir() else [str(program.with_suffix(".py"))]
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH")) if part)
    command = [sys.executable, *start, *args.arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode


def find_checkout(folders: list[Path]) -> Path:
    """The first of `folders` that holds the benchmarks.

    Raises:
        UsageError: none does.
    """
    for folder in folders:
        if (folder / "benchmarks" / "loader.py").is_file():
            return folder
    raise UsageError(
        "the benchmarks are not part of an installed package: run khub bench in a checkout of kernel-hub's source"
    )
