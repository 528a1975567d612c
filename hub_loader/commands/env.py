"""`khub env`: what the resolver sees on this machine."""

from __future__ import annotations

import argparse

from ..config import load_config
from ..environment import Environment, detect_environment
from ..environment_text import environment_json
from ..variant import dotted
from ._common import add_json, print_json

_ELSEWHERE = ("musl", "macOS", "ROCm", "XPU")  # shown only where they are


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `khub env`."""
    parser.epilog = (
        "examples:\n  khub env --json | jq .torch\n"
        "  khub env --json > there.json    and on another machine: khub explain ORG/NAME --env there.json"
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    environment, config = detect_environment(), load_config()
    if args.json:
        settings = {"endpoint": config.endpoint, "cache": str(config.cache), "offline": config.offline}
        print_json({**environment_json(environment), **settings, "backend": environment.backend})
        return 0
    rows = [*_rows(environment), ("hub", config.endpoint + (" (offline)" if config.offline else ""))]
    for label, value in [*rows, ("cache", str(config.cache))]:
        print(f"{label:<10}{value}")
    return 0


def _rows(environment: Environment) -> list[tuple[str, str]]:
    torch = environment.torch
    abi = {True: ", C++11 ABI", False: ", pre-C++11 ABI", None: ""}
    gpus = ", ".join(f"compute capability {dotted(c)}" for c in environment.compute_capabilities)
    runs = environment.driver_cuda
    driver = f"{environment.driver or 'unknown'}{f', runs CUDA up to {dotted(runs)}' if runs else ''}"
    rows = [
        ("python", environment.python),
        ("platform", f"{environment.arch}-{environment.os}"),
        ("glibc", dotted(environment.glibc)),
        ("musl", dotted(environment.musl)),
        ("macOS", dotted(environment.macos)),
        ("torch", "none" if torch is None else torch.release + abi[torch.cxx11_abi]),
        ("CUDA", dotted(None if torch is None else torch.cuda)),
        ("ROCm", dotted(None if torch is None else torch.rocm)),
        ("XPU", dotted(None if torch is None else torch.xpu)),
        ("tvm-ffi", dotted(environment.tvm_ffi)),
        ("driver", driver if environment.driver or runs else "none"),
        ("GPUs", gpus or "none"),
        ("backend", environment.backend),
    ]
    return [(label, value) for label, value in rows if value != "none" or label not in _ELSEWHERE]
