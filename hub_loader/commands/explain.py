"""`khub explain ORG/NAME` or `khub explain DIR`: each variant, chosen or why not, here or elsewhere."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from ..described import describe_environment, from_options
from ..environment import Environment, detect_environment
from ..environment_text import parse_environment
from ..errors import NoMatchingVariantError, UsageError
from ..explanation import as_table, as_text, explain_folder, explanation_json
from ..kernels import Explanation, explain
from ._common import add_json, add_kernel, print_json

_EXAMPLES = f"""examples:
  khub explain org/paged-attention
  khub explain org/paged-attention --backend cpu --json
  khub explain org/paged-attention --torch 2.9 --cuda 12.8 --python 3.12 --sm 90
  khub explain dist/paged-attention --torch 2.9 --cpu --arch aarch64 --table
  khub env --json > there.json        on another machine, and here:
  khub explain org/paged-attention --env there.json

What is not stated is as on this machine, or as in FILE; GPUs and driver are checked only where they are
stated. A folder is explained without a request. Exits with {NoMatchingVariantError.exit_code} when no variant fits."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub explain`."""
    parser.epilog = _EXAMPLES
    add_kernel(parser)
    add_json(parser)
    parser.add_argument("--table", action="store_true", help="print a table as wide as the terminal")
    there = parser.add_argument_group("another environment than this one")
    there.add_argument(
        "--env", metavar="FILE", help="what `khub env --json` printed there; - reads standard input"
    )
    there.add_argument(
        "--torch", metavar="RELEASE", help="its torch: 2.9, 2.9.1+cu128, or none for a system without"
    )
    toolkit = there.add_mutually_exclusive_group()
    toolkit.add_argument("--cuda", metavar="X.Y", help="the CUDA that torch is built for")
    toolkit.add_argument("--rocm", metavar="X.Y", help="the ROCm that torch is built for")
    toolkit.add_argument("--xpu", metavar="X.Y", help="the oneAPI that torch is built for")
    toolkit.add_argument("--cpu", action="store_true", help="torch is built without a GPU")
    there.add_argument(
        "--cxx11-abi",
        action=argparse.BooleanOptionalAction,
        help="torch's C++ ABI, where it is not that of torch's own wheels",
    )
    there.add_argument("--python", metavar="X.Y", help="its Python: 3.12, 3.13t without the GIL")
    there.add_argument(
        "--sm", action="append", metavar="N", help="a GPU's compute capability: 90 or 9.0; may be repeated"
    )
    there.add_argument("--driver-cuda", metavar="X.Y", help="the newest CUDA that its driver runs")
    there.add_argument("--arch", help="its processor: x86_64, aarch64")
    there.add_argument("--os", help="its operating system: linux, darwin, windows")
    libc = there.add_mutually_exclusive_group()
    libc.add_argument("--glibc", metavar="X.Y", help="its C library is glibc")
    libc.add_argument("--musl", metavar="X.Y", help="its C library is musl")
    there.add_argument("--macos", metavar="X.Y", help="its macOS")
    there.add_argument("--tvm-ffi", metavar="X.Y", help="its tvm-ffi")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.json and args.table:
        raise UsageError("--json and --table contradict each other: pass one of them")
    environment = _environment(args)
    answer = _explain(args, environment)
    if args.json:
        print_json(explanation_json(answer, environment))
    elif args.table:
        print(as_table(answer, environment, shutil.get_terminal_size().columns))
    else:
        print(as_text(answer, environment))
    return 0 if answer.chosen is not None else NoMatchingVariantError.exit_code


def _environment(args: argparse.Namespace) -> Environment:
    base = detect_environment() if args.env is None else _read(args.env)
    return describe_environment(base, from_options(vars(args)))


def _read(name: str) -> Environment:
    if name == "-":
        return parse_environment(sys.stdin.read(), origin="standard input")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--env {name} cannot be read: {error}") from None
    return parse_environment(text, origin=name)


def _explain(args: argparse.Namespace, environment: Environment) -> Explanation:
    if not _is_folder(args.repo_id):
        return explain(
            args.repo_id,
            version=args.version,
            revision=args.revision,
            backend=args.backend,
            environment=environment,
        )
    if args.version is not None or args.revision is not None:
        raise UsageError(
            f"{args.repo_id} is a folder here, which has no versions: "
            "leave --version and --revision out, or ask for the repository from another folder"
        )
    return explain_folder(args.repo_id, backend=args.backend, environment=environment)


def _is_folder(text: str) -> bool:
    """Whether the argument names a folder of this machine: it exists, or can be no ORG/NAME."""
    return Path(text).is_dir() or text.startswith((".", "/", "~"))
