"""docs/performance.md, written from the results of `make bench`.

python benchmarks/performance.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"

_HEAD = """# How fast the kernels are

Written by `benchmarks/performance.py` from [kernels-cpu.json](../benchmarks/results/kernels-cpu.json), which
`make bench` writes.

A row is one call, checked against float64 before it is timed. *Limit* is what the same cores reached in the same
turns with nothing else to do: reading memory, copying it, or multiplying and adding in registers; *part* is how much
of that the kernel reached, by medians. *Peer* is torch eager in the same turns: `scaled_dot_product_attention`
over keys and values gathered from the cache (of a prompt: laid out beforehand), `rms_norm`, `silu` and a product, and
the dense product where the kernel's weights are quantized; above 1 the kernel is faster, by medians. *Others* are
further peers in the same turns, read alike: each is checked like the kernel first, and is listed below the table.
Of calls that move less than 4 MiB as many are timed in a row as take a millisecond, after a millisecond of them: in use
their data are in a cache too. They can exceed the limit of memory, and are mostly the cost of a call.
"""

_PEERS = """## The peers

Where they are compared, vLLM's and ggml's operators run in processes of their own, with as many threads on the same
processors, by turns with the rest. vLLM's attention has blocks of 128 tokens, its schedule made beforehand; ggml's Q4_0
has groups of 32 where ours have 128, its weights repacked as llama.cpp repacks them. kernels-community's packages are
compiled from source; on processors without AVX-512 all of them but rmsnorm fall back to torch's operators.

"""


_ENGINES = """## The engine beside others

From [engines.json](../benchmarks/results/engines.json), which `khub bench engines` writes: random weights in the shape
of Qwen3-0.6B, each request 128 tokens in and 64 out, greedy, every contestant a process of its own on the same
processors, by turns. *Ours* is how many times our tokens per second are the contestant's. *Gap* is the time between two
tokens of a request.

| case | contestant | tokens/s | first token | gap | KV waste | rounds | ours |
|---|---|---|---|---|---|---|---|
"""


def engines(measured: Mapping[str, Any]) -> str:
    """The section of the engines' results."""
    lines = []
    for case, answer in measured["results"].items():
        for row in answer["results"]:
            waste = "" if row["kv_waste"] is None else f"{row['kv_waste'] * 100:.1f} %"
            cells = [
                case,
                f"{row['contestant']} {row['version']}".strip(),
                f"{row['tokens_per_second']:.1f}",
                f"{row['first_token'] * 1e3:,.0f} ms",
                f"{row['gap_p50'] * 1e3:.0f} ms",
                waste,
                str(len(row["rounds"])),
                f"{row['ours_over_this']:.2f}x",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    gpu = "On a GPU: not yet measured (`khub bench engines --device cuda --packages .demo/dist`)."
    return _ENGINES + "\n".join(lines) + f"\n\n{gpu}\n"


_SPECULATION = """## Guessed tokens

From [speculation.json](../benchmarks/results/speculation.json), which `benchmarks/speculation.py` writes: the shipped
model, the first half of its layers as the draft model, four prompts at once, every way by turns. *Guesses* is what a
step verifies for a line; *accepted* how many of them came to be where there was a draft; chains stand beside trees of
as many nodes. *Gain* is over plain decoding: a draft model of half the cost loses, at this size and with these guesses.
[What is what](speculation.md).

| way | temperature | guesses | accepted | tokens a step | tokens/s | gain |
|---|---|---|---|---|---|---|
"""
_WAYS = {"ngram": "n-gram", "draft": "draft model, chain", "tree": "draft model, tree"}


def speculation(measured: Mapping[str, Any]) -> str:
    """The section of the ways to guess tokens."""
    lines = []
    plain = {
        r["temperature"]: r["tokens_per_second"] for r in measured["rows"] if r["speculate"] == "nothing"
    }
    for row in measured["rows"]:
        way, *numbers = [part for part in row["speculate"].split(":") if part != "DRAFT"]
        depth = f", depth {numbers[1]}" if len(numbers) > 1 else ""
        cells = [
            "plain" if way == "nothing" else _WAYS[way] + depth,
            f"{row['temperature']:g}",
            numbers[0] if numbers else "",
            f"{row['acceptance_length']:.2f}" if numbers else "",
            f"{row['tokens_per_step']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['tokens_per_second'] / plain[row['temperature']]:.2f}x",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return _SPECULATION + "\n".join(lines) + "\n"


def page(measured: Mapping[str, Any]) -> str:
    """The page of one machine's results."""
    environment = measured["environment"]
    lines = [_HEAD]
    lines.append(
        f"## {environment['device']}, {environment['threads']} threads, torch {environment['torch']}"
    )
    if environment.get("note"):
        lines += ["", environment["note"]]
    lines += [
        "",
        "| call | shape | dtype | median | rate | limit | part | peer | others |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in measured["results"]]
    lines += ["", _PEERS + "\n".join(_peers(measured)), "", "## What is not fast yet", ""]
    lines += list(_behind(measured["results"])) or ["Nothing here is slower than a peer."]
    lines += ["", "GPU: not yet measured (`khub bench kernels --packages .demo/dist --device cuda`).", ""]
    lines += [
        "## The same on another machine",
        "",
        "```sh",
        "make bench",
        "python benchmarks/performance.py",
        "```",
        "",
        "Beside peers of other environments:",
        "",
        "```sh",
        "khub bench kernels --packages .demo/dist --kernels-community ../kernels-community \\",
        "    --vllm ../vllm/bin/python --llama-cpp ../xllamacpp/bin/python",
        "```",
        "",
        "At the shapes of models, with every batch and context that fits into memory, and a picture:",
        "",
        "```sh",
        "khub bench kernels --packages .demo/dist --model llama-3-8b --model qwen3-0.6b --full --plot plot.png",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _peers(measured: Mapping[str, Any]) -> Iterator[str]:
    """What the run said of each peer, and where one was asked and has no figure."""
    for name, said in measured["environment"].get("peers", {}).items():
        yield f"- {name}: {said}"
    for row in measured["results"]:
        for name, reason in row.get("failed", {}).items():
            yield f"- {name} left out of {row['name']}, {row['shape']}, {row['dtype']}: {reason}"


def _behind(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        ratios = {"its peer": row["ratio"], **row.get("other_ratios", {})}
        slower = [f"{ratio:.2f}x of {name}" for name, ratio in ratios.items() if ratio < 1]
        if slower:
            yield f"- {row['name']}, {row['shape']}, {row['dtype']}: {', '.join(slower)}"


def _row(row: Mapping[str, Any]) -> str:
    unit = "GFLOP/s" if row["against"] == "fma" else "GB/s"
    part = "" if row["percent"] is None else f"{row['percent']:.0f} %"
    cells = [
        row["name"],
        row["shape"],
        row["dtype"],
        f"{row['kernel_us'][0]:,.{1 if row['kernel_us'][0] < 100 else 0}f} µs",
        f"{row['giga_per_second']:.1f} {unit}",
        row["against"],
        part,
        f"{row['ratio']:.2f}x",
        ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row.get("other_ratios", {}).items()),
    ]
    return "| " + " | ".join(cells) + " |"


def whole() -> str:
    """The page of the results that are kept."""
    sections = [
        page(_read("kernels-cpu.json")),
        engines(_read("engines.json")),
        speculation(_read("speculation.json")),
    ]
    return "\n".join(sections)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def readme(text: str) -> str:
    """The README with the range of the kernels' ratios to torch eager that was measured."""
    ratios = [row["ratio"] for row in _read("kernels-cpu.json")["results"]]
    return re.sub(
        r"(?<=: )\S+x to \S+x(?= of torch eager)", f"{min(ratios):.1f}x to {max(ratios):.0f}x", text
    )


def main() -> int:
    PAGE.write_text(whole())
    README.write_text(readme(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
