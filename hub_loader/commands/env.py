"""`khub env`: what the resolver sees on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..config import load_config
from ..environment import Environment, detect_environment
from ..variant import Version
from ._common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub env`."""
    parser.epilog = "example:\n  khub env --json | jq .torch"
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    environment, config = detect_environment(), load_config()
    if args.json:
        settings = {"endpoint": config.endpoint, "cache": str(config.cache), "offline": config.offline}
        print_json({**asdict(environment), **settings, "backend": environment.backend})
        return 0
    rows = [*_rows(environment), ("hub", config.endpoint + (" (offline)" if config.offline else ""))]
    for label, value in [*rows, ("cache", str(config.cache))]:
        print(f"{label:<10}{value}")
    return 0


def _rows(environment: Environment) -> list[tuple[str, str]]:
    torch = environment.torch
    abi = {True: ", C++11 ABI", False: ", pre-C++11 ABI", None: ""}
    gpus = ", ".join(f"compute capability {_dotted(c)}" for c in environment.compute_capabilities)
    return [
        ("python", environment.python),
        ("platform", f"{environment.arch}-{environment.os}"),
        ("glibc", _dotted(environment.glibc)),
        ("torch", "none" if torch is None else torch.release + abi[torch.cxx11_abi]),
        ("CUDA", _dotted(None if torch is None else torch.cuda)),
        ("tvm-ffi", _dotted(environment.tvm_ffi)),
        ("GPUs", gpus or "none"),
        ("backend", environment.backend),
    ]


def _dotted(version: Version | None) -> str:
    return "none" if version is None else f"{version[0]}.{version[1]}"
