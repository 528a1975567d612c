"""What speculation gains: plain decoding, chains and draft trees with the same number of guessed tokens a step.

    python benchmarks/speculation.py [--model DIR] [--draft DIR] [--budgets 4 8 16] [--rounds N] [--json FILE]

Without `--draft` the draft model is the first half of the model's layers: half the cost, and often the same token.
Every way of decoding runs the same prompts, in turns, and has to generate the tokens of plain decoding. For each it
prints how many guesses came to be each time (acceptance length), how many tokens a line got each time it was drawn for
(tokens per step), and tokens per second. A chain of N tokens asks the draft model N times, a tree of N nodes as often
as it is deep. `--json benchmarks/results/speculation.json` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _report import ROOT, commit, machine, spread
from safetensors.torch import load_file, save_file

from engine import LLM, Completion, SamplingParams
from engine.counters import Counters

SHIPPED = ROOT / "engine" / "models" / "stdlib-llama"
PROMPTS = (
    "def main(argv=None):\n    parser = ",
    "class Queue:\n    def __init__(self, maxsize=0):\n",
    "import os\nimport sys\nimport ",
    "    try:\n        return self._cache[key]\n    except KeyError:\n",
)


@dataclass(frozen=True)
class Row:
    """One way of decoding. seconds, tokens_per_second: over the rounds."""

    speculate: str
    temperature: float
    acceptance_length: float
    tokens_per_step: float
    seconds: dict[str, float]
    tokens_per_second: float


@dataclass
class Way:
    """A way of decoding that is being measured."""

    speculate: str
    temperature: float
    llm: LLM
    seconds: list[float]
    generated: int = 0


def half_model(folder: Path, to: Path) -> Path:
    """The first half of a model's layers as a model of its own."""
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"] = config["num_hidden_layers"] // 2
    weights = {
        name: weight
        for name, weight in load_file(folder / "model.safetensors").items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    for name in ("tokenizer.json", "generation_config.json"):
        (to / name).write_bytes((folder / name).read_bytes())
    (to / "config.json").write_text(json.dumps(config))
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


def spellings(draft: Path, budgets: Iterable[int]) -> list[str]:
    """What is compared, each at every budget."""
    return [
        spelled
        for budget in budgets
        for spelled in (
            f"ngram:{budget}",
            f"draft:{draft}:{budget}",
            f"tree:{draft}:{budget}",
            f"tree:{draft}:{budget}:{max(1, budget // 4)}",
        )
    ]


def run(way: Way, params: SamplingParams) -> list[Completion]:
    """Generate once, timed."""
    way.llm.scheduler.counters = Counters()
    start = time.perf_counter()
    completions = way.llm.generate(PROMPTS, params)
    way.seconds.append(time.perf_counter() - start)
    way.generated = sum(len(completion.tokens) for completion in completions)
    return completions


def measure(
    model: Path, draft: Path, budgets: Sequence[int], temperature: float, tokens: int, rounds: int
) -> list[Row]:
    """All ways in turns; raises RuntimeError where one generates other tokens than plain decoding."""
    params = SamplingParams(max_tokens=tokens, temperature=temperature, seed=1, ignore_stop=True)
    ways = [Way("nothing", temperature, LLM(model, max_sequences=len(PROMPTS)), [])]
    ways += [
        Way(s, temperature, LLM(model, max_sequences=len(PROMPTS), speculate=s), [])
        for s in spellings(draft, budgets)
    ]
    for _ in range(rounds):
        expected: list[Completion] = []
        for way in ways:
            completions = run(way, params)
            expected = expected or completions
            if [c.tokens for c in completions] != [c.tokens for c in expected]:
                raise RuntimeError(f"{way.speculate} generates other tokens than plain decoding")
    return [_row(way, str(draft)) for way in ways]


def _row(way: Way, draft: str) -> Row:
    counters, seconds = way.llm.scheduler.counters, spread(way.seconds)
    return Row(
        way.speculate.replace(draft, "DRAFT"),
        way.temperature,
        round(counters.acceptance_length, 3),
        round(counters.tokens_per_step, 3),
        seconds,
        round(way.generated / seconds["median"], 1),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=SHIPPED, help="a model folder; the shipped model without it")
    add("--draft", type=Path, help="a draft model's folder")
    add("--budgets", type=int, nargs="+", default=[4, 8, 16], help="guessed tokens a step")
    add("--tokens", type=int, default=96, help="to generate for each prompt")
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    add("--rounds", type=int, default=5, help="turns of each way")
    add("--json", type=Path, metavar="FILE", help="write the numbers to a file")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        draft = args.draft or half_model(args.model, Path(folder))
        rows = [
            row
            for temperature in args.temperatures
            for row in measure(args.model, draft, args.budgets, temperature, args.tokens, args.rounds)
        ]
    print(f"{'speculate':<20}{'temperature':>12}{'acceptance':>12}{'tokens/step':>13}{'tokens/s':>10}")
    for row in rows:
        rates = f"{row.acceptance_length:>12.2f}{row.tokens_per_step:>13.2f}{row.tokens_per_second:>10.1f}"
        print(f"{row.speculate:<20}{row.temperature:>12}{rates}")
    if args.json:
        data = {"machine": machine(), **commit(), "prompts": len(PROMPTS), "rows": [asdict(r) for r in rows]}
        args.json.parent.mkdir(exist_ok=True, parents=True)
        args.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
