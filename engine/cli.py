"""`khub engine`: run a model with its kernels swapped in by name."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hub_loader.errors import UsageError

from .bench.command import add_bench
from .bench.compare import add_compare
from .extra import needed
from .server.command import add_serve
from .speed import add_speed, speed_of

if TYPE_CHECKING:  # torch takes seconds to import; `--help` should not
    from .engine import LLM
    from .output import Completion

_EXAMPLES = """
examples:
  khub engine generate --model engine/models/stdlib-llama --prompt 'def main():'
  khub engine generate --model org/name --prompt Hello
  khub engine generate --model DIR --prompts-file prompts.txt --kernels hub --max-tokens 100 --json
  khub engine generate --model DIR --prompt Hello --kernels attention=org/paged-attention@1,kv_write=./built

--kernels: torch, hub (packages of the organisation kernel-hub), or slot=source,… where a source is torch,
org/name, org/name@version or a folder with a built package. Slots: attention, kv_write, norm, rotary,
qkv (norm of heads, rotary and kv_write in one), activation, linear, matmul, planner; those not named run plain
torch.
"""


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add `khub engine`'s subcommands to its parser."""
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    generate = commands.add_parser(
        "generate",
        help="continue prompts, all of them in one continuous batch",
        description="Continue prompts, all of them in one continuous batch.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = generate.add_argument
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="a folder in Hugging Face format, or org/name on the hub",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a model on the hub")
    add("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; may be given several times")
    add(
        "--prompts-file",
        metavar="FILE",
        help="one prompt per line, - for standard input; blank lines skipped",
    )
    add("--max-tokens", type=int, default=64, metavar="N", help="tokens to generate per prompt (64)")
    add("--kernels", default="torch", metavar="SPEC", help="what serves each slot (torch); see below")
    add(
        "--fall-back",
        action="store_true",
        help="run plain torch in place of a kernel that fails its self-test, instead of ending",
    )
    add("--quantize", metavar="FORMAT", help="quantize the linear layers on load: int8, int4, w4a8 or fp8")
    add("--dtype", default="float32", help="float32, bfloat16 or float16 (float32)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; 0: all (0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens up to P (1.0)")
    add("--seed", type=int, metavar="N", help="make drawing repeatable")
    add("--token-budget", type=int, default=512, metavar="N", help="most tokens computed in one step (512)")
    add(
        "--speculate", metavar="SPEC", help="guess ahead: ngram:4, draft:DIR:4 or tree:DIR:16 (tokens, nodes)"
    )
    add_speed(generate)
    add("--json", action="store_true", help="print one JSON object instead of text")
    generate.set_defaults(run=run_generate)
    add_serve(commands)
    add_bench(commands)
    add_compare(commands)


def run_generate(args: argparse.Namespace) -> int:
    """Run `khub engine generate`: completions to stdout, slots and progress to stderr."""
    prompts = [*args.prompt, *_read_prompts(args.prompts_file)]
    if not prompts:
        raise UsageError("no prompt: give --prompt TEXT or --prompts-file FILE")
    with needed("khub engine"):
        from .engine import LLM
        from .kernel_table import format_bindings
        from .kernels import parse_sources
        from .params import SamplingParams

    params = SamplingParams(args.max_tokens, args.temperature, args.top_k, args.top_p, args.seed)
    llm = LLM(
        args.model,
        revision=args.revision,
        kernels=parse_sources(args.kernels),
        quantize=args.quantize,
        dtype=args.dtype,
        token_budget=args.token_budget,
        fall_back=args.fall_back,
        speculate=args.speculate,
        **speed_of(args),
    )
    ids = [llm.add(prompt, params) for prompt in prompts]
    print(format_bindings(llm.kernel_table), file=sys.stderr)
    start = time.perf_counter()
    completions = _run(llm, ids)
    seconds = time.perf_counter() - start
    generated = sum(len(completion.tokens) for completion in completions)
    print(f"{generated} tokens in {seconds:.2f} s, {generated / seconds:.1f} tok/s", file=sys.stderr)
    if args.speculate:
        counters = llm.scheduler.counters
        gains = (
            f"{counters.tokens_per_step:.2f} tokens a step, {counters.acceptance_length:.2f} of each guess"
        )
        print(f"speculation: {gains} came to be", file=sys.stderr)
    if args.json:
        results = [
            {"prompt": prompt, "text": c.text, "tokens": c.tokens, "finish_reason": c.finish_reason}
            for prompt, c in zip(prompts, completions, strict=True)
        ]
        slots = [asdict(binding) for binding in llm.kernel_table]
        print(json.dumps({"slots": slots, "completions": results, "seconds": round(seconds, 3)}, indent=2))
        return _end(completions)
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1):
        if len(prompts) > 1:
            print(f"--- {number}")
        print(prompt + completion.text)
    return _end(completions)


def _end(completions: list[Completion]) -> int:
    """0 if all prompts were answered; raises the first error of one that was not."""
    for error in (each.error for each in completions if each.error is not None):
        raise error
    return 0


def _run(llm: LLM, ids: list[int]) -> list[Completion]:
    """Step until every request finished, with a bar on a terminal; in the order of `ids`."""
    from .progress import Progress

    done: dict[int, Completion] = {}
    with Progress(len(ids), None) as bar:
        while llm.busy:
            deltas = llm.step()
            bar.take(deltas)
            done |= {delta.request_id: delta.completion for delta in deltas if delta.completion}
    return [done[request_id] for request_id in ids]


def _read_prompts(name: str | None) -> list[str]:
    if name is None:
        return []
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts-file {name}: {error}") from None
    return [line for line in text.splitlines() if line.strip()]
