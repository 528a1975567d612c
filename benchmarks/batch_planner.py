"""What planning a step costs: plain Python and torch, against kernels_src/batch-planner.

    python benchmarks/batch_planner.py PACKAGE [--rounds N] [--write]

PACKAGE is the folder that `khub build kernels_src/batch-planner --out PACKAGE` wrote. Both sides lay out the same
step from the engine's own lists, and end in the tensors that the model reads; their answers are compared first.
Measured in turns (A B A B …), each turn long enough to be timed, so that a busy machine slows both alike. Hashes
are compared with a loop over hashlib's BLAKE2b. `--write` leaves the numbers in benchmarks/results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

import hub_loader
from engine import torch_ops
from engine.batch import build_batch
from engine.scheduler import Chunk, Sequence, Step

RESULTS = Path(__file__).with_name("results") / "batch_planner.json"
ROOT = Path(__file__).parent.parent
TURN_SECONDS = 0.02
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Spread:
    """Microseconds a call over all turns."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One case: the Python it replaces, the package, and how many times faster by the medians."""

    case: str
    python: Spread
    planner: Spread
    ratio: float


def decode(sequences: int, context: int) -> Step:
    """Every sequence computes one token; blocks are handed out in an order as after hours of traffic."""
    blocks = context // BLOCK_SIZE + 1
    free = [(i * 7919) % (sequences * blocks) for i in range(sequences * blocks)]
    chunks = []
    for i in range(sequences):
        table = free[i * blocks : (i + 1) * blocks]
        sequence = Sequence(i, list(range(i, i + context + 1)), 8, computed=context, blocks=table)
        chunks.append(Chunk(sequence, context, context + 1, True))
    return Step(chunks)


def prefill(tokens: int, decodes: int) -> Step:
    """One chunk of a long prompt beside decodes."""
    table = list(range(4000, 4000 + -(-tokens // BLOCK_SIZE)))
    long = Sequence(-1, list(range(2 * tokens)), 8, blocks=table)
    return Step([*decode(decodes, 500).chunks, Chunk(long, 0, tokens, False)])


def blake_chain(token_ids: list[int], block_size: int) -> list[bytes]:
    """Prefix hashes as one writes them in Python: each block's bytes after the hash before."""
    hashes, parent = [], bytes(16)
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        text = parent + array("q", token_ids[start : start + block_size]).tobytes()
        parent = hashlib.blake2b(text, digest_size=16).digest()
        hashes.append(parent)
    return hashes


def measure(sides: tuple[Callable[[], Any], Callable[[], Any]], rounds: int) -> list[Spread]:
    """Time both sides in turns."""
    calls = []
    for side in sides:
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < TURN_SECONDS:
            side()
            count += 1
        calls.append(count)
    turns: list[list[float]] = [[], []]
    for _ in range(rounds):
        for number, side in enumerate(sides):
            begin = time.perf_counter()
            for _ in range(calls[number]):
                side()
            turns[number].append((time.perf_counter() - begin) / calls[number] * 1e6)
    return [Spread(statistics.median(t), min(t), max(t)) for t in turns]


def step_row(case: str, step: Step, planner: Any, rounds: int) -> Row:
    """Lay `step` out on both sides, the tensors compared."""
    sides = (
        lambda: build_batch(step, BLOCK_SIZE, torch_ops.plan_step),
        lambda: build_batch(step, BLOCK_SIZE, planner.plan_step),
    )
    ours, theirs = (vars(side()) for side in sides)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), case
    python, native = measure(sides, rounds)
    return Row(case, python, native, python.median / native.median)


def hash_row(tokens: int, planner: Any, rounds: int) -> Row:
    """Prefix hashes of one prompt."""
    ids = [(i * 7919) % 150_000 for i in range(tokens)]
    assert len(set(planner.hash_blocks(ids, BLOCK_SIZE))) == tokens // BLOCK_SIZE
    sides = (lambda: blake_chain(ids, BLOCK_SIZE), lambda: planner.hash_blocks(ids, BLOCK_SIZE))
    python, native = measure(sides, rounds)
    return Row(f"hash {tokens} tokens", python, native, python.median / native.median)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    status = subprocess.run(["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": commit.stdout.strip(),
        "dirty": bool(status.stdout.strip()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="the built package of kernels_src/batch-planner")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each side")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    planner = hub_loader.get_local_kernel(args.package)
    (loaded,) = hub_loader.get_loaded_kernels()
    steps = {
        "decode, 1 sequence of 1000": decode(1, 1000),
        "decode, 8 sequences of 1000": decode(8, 1000),
        "decode, 64 sequences of 2000": decode(64, 2000),
        "decode, 256 sequences of 2000": decode(256, 2000),
        "prefill 512 and 16 decodes": prefill(512, 16),
        "prefill 8192 and 64 decodes": prefill(8192, 64),
    }
    rows = [step_row(case, step, planner, args.rounds) for case, step in steps.items()]
    rows += [hash_row(tokens, planner, args.rounds) for tokens in (512, 8192)]
    print(f"{'microseconds a call: median (low … high)':<40}{'Python':>28}{'batch-planner':>28}{'ratio':>8}")
    for row in rows:
        python, native = (f"{s.median:.1f} ({s.low:.1f} … {s.high:.1f})" for s in (row.python, row.planner))
        print(f"{row.case:<40}{python:>28}{native:>28}{row.ratio:>7.1f}x")
    if args.write:
        data = {"machine": machine(), "package": loaded.metadata.id, "rows": [asdict(row) for row in rows]}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(data, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
