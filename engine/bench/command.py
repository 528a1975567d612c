"""`khub engine bench`: measure this engine beside others, on one workload, in one run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_loader.errors import UsageError

from ..extra import needed
from ..speed import add_speed, speed_of

if TYPE_CHECKING:  # torch takes seconds to import; `--help` should not
    from .contestants import Contestant
    from .report import Outcome
    from .workloads import Sizes, Workload

_EXAMPLES = """
examples:
  khub engine bench --model engine/models/stdlib-llama --workload fixed --requests 4 --outputs 16
  khub engine bench --shape qwen3-0.6b --kernels hub --peer transformers-batch --peer vllm=/opt/vllm/bin/python
  khub engine bench --shape qwen3-0.6b --workload shared --json --plot bench.svg

workloads: fixed (each request --inputs tokens in, --outputs out), mix (lengths spread as in ShareGPT's
conversations, with those means), uniform (lengths from a tenth of those up to them), shared (prompts that begin
with the same --prefix tokens; also run without the prefix cache). --shape: random weights of that shape, in a
temporary folder: qwen3-0.6b, qwen3-tiny, llama-3-8b. Every contestant is a process of its own on the same
processors; rounds alternate between them.
"""


def add_bench(commands: Any) -> None:
    """Add `bench` to the subcommands of `khub engine`."""
    parser = commands.add_parser(
        "bench",
        help="measure tokens per second and latency, beside other engines",
        description="Measure tokens per second and latency, beside other engines in the same run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="model folder in Hugging Face format")
    add("--shape", metavar="NAME", help="instead: random weights of a known shape; see below")
    add(
        "--workload",
        action="append",
        choices=("fixed", "mix", "uniform", "shared"),
        help="may be given several times",
    )
    add("--requests", type=int, default=8, metavar="N", help="requests at once (8)")
    add("--inputs", type=int, default=128, metavar="N", help="prompt tokens of a request (128)")
    add("--outputs", type=int, default=64, metavar="N", help="tokens to generate for each (64)")
    add("--prefix", type=int, default=512, metavar="N", help="tokens that shared prompts begin with (512)")
    add("--peer", action="append", default=[], metavar="NAME[=PYTHON]", help="see below; several times")
    add("--kernels", default="torch", metavar="SPEC", help="as of `khub engine generate` (torch)")
    add("--quantize", metavar="FORMAT", help="quantize our linear layers on load: int8, int4 or w4a8")
    add("--dtype", default="float32", help="of every contestant: float32 or bfloat16 (float32)")
    add("--block-size", type=int, default=8, metavar="N", help="tokens in a block of our cache (8)")
    add("--token-budget", type=int, default=512, metavar="N", help="most tokens of ours in one step (512)")
    add_speed(parser)
    add("--threads", type=int, metavar="N", help="processors for each contestant (all)")
    add("--rounds", type=int, default=1, metavar="N", help="how often each is run; medians are shown (1)")
    add("--seed", type=int, default=0, metavar="N", help="of the weights and the prompts (0)")
    add("--plot", type=Path, metavar="FILE", help="write bars to FILE.png or FILE.svg")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    parser.epilog += "\npeers: transformers, transformers-batch (continuous batching), vllm, llama.cpp\n"
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    """Run `khub engine bench`: table or JSON to stdout, progress to stderr."""
    with needed("khub engine bench"):
        from . import report
        from .contestants import parse_peer
        from .shapes import write_model
    if (args.model is None) == (args.shape is None):
        raise UsageError("give either --model DIR or --shape NAME")
    if args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}, expected at least 1")
    if args.plot:
        report.check_picture(args.plot)
    processors = _processors(args.threads)
    peers = [parse_peer(text) for text in args.peer]
    with tempfile.TemporaryDirectory(prefix="khub-model-") as own:
        folder = args.model
        if folder is None:
            folder = Path(own)
            print(f"writing random weights of {args.shape} in {args.dtype}", file=sys.stderr)
            write_model(folder, args.shape, args.dtype, args.seed)
        outcomes = _measure(args, folder, _with_files(peers, args, folder, Path(own)), processors)
    if args.plot:
        report.write_plot(outcomes, args.plot)
    if args.json:
        setting = {key: str(value) for key, value in vars(args).items() if key != "run" and value is not None}
        print(json.dumps(report.to_json(outcomes, setting), indent=2))
    else:
        print(report.format_table(outcomes))
    return 0


def _measure(
    args: argparse.Namespace, folder: Path, peers: list[Contestant], processors: tuple[int, ...]
) -> list[Outcome]:
    """Every workload, and in each `rounds` times every contestant in turn."""
    from ..config import load_config
    from .contestants import run_contestant
    from .report import Outcome
    from .workloads import Sizes, make_workload

    sizes = Sizes(args.requests, args.inputs, args.outputs, args.prefix)
    vocabulary = load_config(folder).vocab_size
    outcomes = []
    for name in args.workload or ["fixed"]:
        workload = make_workload(name, sizes, vocabulary, args.seed)
        contestants = [*_ours(args, workload, sizes), *peers]
        runs: dict[str, list[Any]] = {contestant.name: [] for contestant in contestants}
        for number in range(args.rounds):
            for contestant in contestants:
                print(f"{name}, round {number + 1}: {contestant.name}", file=sys.stderr, flush=True)
                run = run_contestant(contestant, folder, args.dtype, workload, processors, args.device)
                runs[contestant.name].append(run)
        outcomes += [Outcome(name, contestant, tuple(each)) for contestant, each in runs.items()]
    return outcomes


def _ours(args: argparse.Namespace, workload: Workload, sizes: Sizes) -> list[Contestant]:
    """This engine; where prompts begin alike, without its prefix cache as well."""
    from ..kernels import parse_sources
    from .contestants import Contestant
    from .workloads import lengths, longest

    options: dict[str, Any] = {
        "kernels": parse_sources(args.kernels),
        "quantize": args.quantize,
        **speed_of(args),
        "block_size": args.block_size,
        "token_budget": args.token_budget,
        "max_sequences": max(64, sizes.requests),
        # Room for everybody at once, as the peers are given: what is measured is not who waits.
        "num_blocks": sum(
            -(-count // args.block_size) for count in (*lengths(workload), *[longest(workload)] * 2)
        ),
    }
    ours = Contestant("kernel-hub", "ours.py", options=options)
    if workload.name != "shared":
        return [ours]
    alone = replace(ours, name="kernel-hub without prefix cache", options=options | {"share_prefixes": False})
    return [ours, alone]


def _with_files(
    peers: list[Contestant], args: argparse.Namespace, model: Path, own: Path
) -> list[Contestant]:
    """Peers with the model in the format that they read, written to the folder `own`."""
    from .gguf_file import write_gguf

    made = []
    for peer in peers:
        if peer.name == "llama.cpp":
            file = own / "model.gguf"
            print("writing the model as GGUF", file=sys.stderr)
            write_gguf(model, file, args.quantize or args.dtype)
            peer = replace(peer, options={"file": str(file)})
        made.append(peer)
    return made


def _processors(count: int | None) -> tuple[int, ...]:
    available = tuple(sorted(os.sched_getaffinity(0)))
    if count is not None and not 1 <= count <= len(available):
        raise UsageError(f"--threads is {count}, expected 1 to {len(available)}")
    return available[:count]
