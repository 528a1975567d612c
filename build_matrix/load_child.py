"""Run inside another interpreter and torch: load one variant as a user would, run the kernel's check.

    python -S load_child.py VARIANT_FOLDER --backend cpu [--check FILE] [--preload LIBRARY] --path FOLDER

Needs nothing but the standard library, torch and hub_loader, which are put on the path here. Prints one JSON
object as its last line: what was proven, or the error.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", type=Path)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--preload", type=Path, action="append", default=[])
    parser.add_argument("--path", action="append", default=[])
    args = parser.parse_args()
    sys.path[:1] = args.path  # instead of this file's folder
    try:
        print(json.dumps({"proven": load(args)}))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}))
        return 1
    return 0


def load(args: argparse.Namespace) -> str:
    """Load and check; returns what was proven, as the end of a sentence."""
    for library in args.preload:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    torch = import_torch()
    from hub_loader import get_local_kernel

    before = operators(torch)
    module = get_local_kernel(args.variant, backend=args.backend)
    foreign = sorted(name for name in operators(torch) - before if name.split("::")[0] != module.__name__)
    if foreign:
        raise AssertionError(
            f"it registers operators outside torch.ops.{module.__name__}: {', '.join(foreign)}"
        )
    if args.check is None:
        return "it loads, every symbol is resolved; no operator was run"
    load_check(args.check).check(module)
    return "it loads and its operator agrees with the reference"


def import_torch() -> ModuleType:
    """Import torch with the functions of its stubs unresolved; what comes after resolves all of its own."""
    sys.setdlopenflags(os.RTLD_LAZY)
    import torch

    sys.setdlopenflags(os.RTLD_NOW)
    return torch


def operators(torch: ModuleType) -> set[str]:
    return set(torch._C._dispatch_get_all_op_names())


def load_check(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("load_check", path)
    assert spec is not None and spec.loader is not None  # a .py file always has them
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
