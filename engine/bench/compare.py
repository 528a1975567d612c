"""`khub engine compare`: one workload twice, with a slot's kernel changed, and how far the logits are apart."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_loader.errors import UsageError

from ..extra import needed

if TYPE_CHECKING:
    from ..kernels import Kernels
    from .recording import Recorded
    from .workloads import Workload

_EXAMPLES = """
examples:
  khub engine compare --model DIR --slot norm --with torch org/rmsnorm-rotary
  khub engine compare --shape qwen3-0.6b --slot attention,kv_write --with torch ./built/paged-attention --json

Rounds alternate between the two sides, and medians are shown. The logits compared are those after each prompt
and, as long as both sides chose the same tokens, those after each token they generated.
"""


def add_compare(commands: Any) -> None:
    """Add `compare` to the subcommands of `khub engine`."""
    parser = commands.add_parser(
        "compare",
        help="one workload with two kernels in a slot: speed, and the largest difference of logits",
        description="Run one workload with each of two kernels in a slot, everything else the same.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="model folder in Hugging Face format")
    add("--shape", metavar="NAME", help="instead: random weights of a known shape, as of `khub engine bench`")
    add(
        "--slot", required=True, metavar="SLOT[,SLOT]", help="the slot to change, or several that go together"
    )
    add("--with", dest="sources", required=True, nargs=2, metavar=("A", "B"), help="what to put into it")
    add("--kernels", default="torch", metavar="SPEC", help="what serves the other slots (torch)")
    add("--quantize", metavar="FORMAT", help="quantize the linear layers on load: int8, int4 or w4a8")
    add("--dtype", default="float32", help="float32, bfloat16 or float16 (float32)")
    add("--requests", type=int, default=8, metavar="N", help="requests at once (8)")
    add("--inputs", type=int, default=128, metavar="N", help="prompt tokens of a request (128)")
    add("--outputs", type=int, default=32, metavar="N", help="tokens to generate for each (32)")
    add("--rounds", type=int, default=3, metavar="N", help="how often each side is run (3)")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    """Run `khub engine compare`: table or JSON to stdout."""
    with needed("khub engine compare"):
        from ..kernels import SLOTS, bind, parse_sources, slot_sources
        from .shapes import write_model
        from .workloads import Sizes, make_workload
    if (args.model is None) == (args.shape is None):
        raise UsageError("give either --model DIR or --shape NAME")
    if args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}, expected at least 1")
    slots = [slot.strip() for slot in args.slot.split(",")]
    unknown = [slot for slot in slots if slot not in SLOTS]
    if unknown:
        raise UsageError(f"--slot {unknown[0]!r}: the slots are {', '.join(SLOTS)}")
    with tempfile.TemporaryDirectory(prefix="khub-model-") as own:
        folder = args.model
        if folder is None:
            folder = Path(own)
            write_model(folder, args.shape, args.dtype)
        from ..config import load_config
        from ..weights import open_weights

        formats = open_weights(folder, load_config(folder).scheme).formats or args.quantize
        others = slot_sources(parse_sources(args.kernels), formats)
        sides = [bind(slot_sources(others | dict.fromkeys(slots, each), formats)) for each in args.sources]
        sizes = Sizes(args.requests, args.inputs, args.outputs)
        workload = make_workload("fixed", sizes, load_config(folder).vocab_size)
        found = _compare(args, folder, sides, workload)
    print(json.dumps(found, indent=2) if args.json else _table(args, found))
    return 0


def _compare(
    args: argparse.Namespace, folder: Path, sides: list[Kernels], workload: Workload
) -> dict[str, Any]:
    """Figures of both sides, and what their logits say of each other."""
    from .metrics import figures
    from .recording import RecordingLLM

    options = {"quantize": args.quantize, "dtype": args.dtype, "share_prefixes": False}
    llms = [RecordingLLM(folder, kernels=kernels, **options) for kernels in sides]
    logits = []
    for llm in llms:  # once before anything is timed, which warms up as well
        _run(llm, workload)
        logits.append(llm.recorded)
        llm.recording = False
    runs: list[list[Any]] = [[], []]
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        for llm, done in zip(llms, runs, strict=True):
            done.append(_run(llm, workload))
    measured = [figures(done) for done in runs]
    return {
        "slot": args.slot,
        "sides": [
            {"source": source, "bindings": [asdict(b) for b in llm.kernels.bindings], **asdict(figure)}
            for source, llm, figure in zip(args.sources, llms, measured, strict=True)
        ],
        "second_over_first": measured[1].tokens_per_second / measured[0].tokens_per_second,
        **_difference(*logits),
    }


def _run(llm: Any, workload: Workload) -> Any:
    """The workload once."""
    from .metrics import Run
    from .peers.ours import generate

    requests, waste = generate(llm, [asdict(request) for request in workload.requests])
    times = tuple(tuple(trace["times"]) for trace in requests)
    tokens = tuple(tuple(trace["tokens"]) for trace in requests)
    return Run("", times, tokens, waste, 0, 0.0, 0.0)


def _difference(first: Recorded, second: Recorded) -> dict[str, Any]:
    """Over the texts that both sides came through: largest difference, and that of the largest logit."""
    common = first.keys() & second.keys()
    apart = max(float((first[text] - second[text]).abs().max()) for text in common)
    largest = max(float(first[text].abs().max()) for text in common)
    return {
        "largest_logit_difference": apart,
        "largest_logit": largest,
        "compared": len(common),
        "same_texts": first.keys() == second.keys(),
    }


def _table(args: argparse.Namespace, found: dict[str, Any]) -> str:
    rows = [(args.slot, "tok/s", "first token", "gap p50", "gap p99")]
    rows += [
        (
            side["source"],
            f"{side['tokens_per_second']:.1f}",
            f"{side['first_token'] * 1000:.0f} ms",
            f"{side['gap_p50'] * 1000:.1f} ms",
            f"{side['gap_p99'] * 1000:.1f} ms",
        )
        for side in found["sides"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    first, second = args.sources
    lines.append(f"{second} makes {found['second_over_first']:.2f} times the tokens of {first}")
    lines.append(
        f"largest logit difference {found['largest_logit_difference']:.2e} among {found['compared']} rows "
        f"(largest logit {found['largest_logit']:.2e}); "
        + ("every token is the same" if found["same_texts"] else "the tokens part at some point")
    )
    return "\n".join(lines)
