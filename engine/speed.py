"""The arguments of commands that say where and how fast a model runs, and nothing of what it says."""

from __future__ import annotations

import argparse
from typing import Any

_NAMES = ("device", "asynchronous", "cuda_graphs", "compile")


def add_speed(parser: argparse.ArgumentParser) -> None:
    """Add --device, --asynchronous, --cuda-graphs and --compile."""
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:NUMBER (cpu)")
    add(
        "--asynchronous",
        action=switch,
        help="plan a step while the one before is computed (where the device is a GPU)",
    )
    add(
        "--cuda-graphs",
        action=switch,
        help="replay steps that only decode (where the device is a GPU and kernels allow it)",
    )
    add("--compile", action="store_true", help="have torch compile what stands between two layers' attention")


def speed_of(args: argparse.Namespace) -> dict[str, Any]:
    """What they say, as arguments of LLM."""
    return {name: getattr(args, name) for name in _NAMES}
