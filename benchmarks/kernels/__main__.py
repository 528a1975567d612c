"""The kernels against torch eager, in one run: first checked against float64, then timed in turn.

    khub bench kernels --packages .demo/dist [--device cpu|cuda] [--out benchmarks/results/NAME.json]
    khub bench kernels --packages .demo/dist --model llama-3-8b --model qwen3-0.6b --full --plot FILE

`--packages` is a folder of built packages (`khub build … --out FOLDER/NAME`). Each case runs the kernel and its
peers alternately; a row gives the median, least and greatest time of each, the work that must be done (bytes, or
operations), the rate, and the ratio of medians (above 1: the kernel is faster). On a CPU what the same cores reach at
most, reading, copying or multiplying and adding, is measured in the same turns; a row gives the part of that which
the kernel reaches, by medians. Without `--model` the shapes are those of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hub_loader import get_loaded_kernels, get_local_kernel

from .._machine import probes
from . import peers, plots
from .attention import attention
from .case import Case, line, measure
from .matmul import matmul
from .models import BATCHES, MODELS, Model, attention_grid
from .rows import fused_add_rms_norm, qk_norm_rope_cache, rms_norm, rotary, silu_and_mul

ROOT = Path(__file__).resolve().parent.parent.parent
Make = Callable[[], Case]
NAMES = ("paged-attention", "rmsnorm-rotary", "quantized-matmul")


def standard_cases(kernels: tuple[ModuleType, ...], device: str) -> Iterator[Make]:
    """The cases of docs/performance.md, made when their turn comes; a GPU gets the batches it is made for."""
    attend, rows, quantized = kernels
    gpu = device == "cuda"
    for dtype in dtypes(device):
        batches = ((1, 4096), (32, 4096), (256, 1024)) if gpu else ((1, 1024), (32, 4096))
        for batch, context in batches:
            yield partial(attention, attend, MODELS["qwen3-0.6b"], batch, context, dtype)
        for tokens in (1, 4096) if gpu else (1, 64):
            yield partial(rms_norm, rows, tokens, 4096, dtype)
            yield partial(silu_and_mul, rows, tokens, 4096, dtype)
            yield partial(rotary, rows, tokens, dtype)
        for tokens in (1, 8192):
            yield partial(qk_norm_rope_cache, rows, tokens, dtype)
        yield partial(fused_add_rms_norm, rows, 16384, 4096, dtype)
        for format in ("int8", "int4"):
            for tokens in (1, 16, 512):
                yield partial(matmul, quantized, format, tokens, 4096, 4096, dtype)
        if not gpu:  # which gains nothing by it
            for tokens in (1, 16, 512):
                yield partial(matmul, quantized, "int4", tokens, 4096, 4096, dtype, int8_activations=True)


def model_cases(
    kernels: tuple[ModuleType, ...], device: str, name: str, model: Model, extent: str
) -> Iterator[Make]:
    """A decode step of one model at each batch and context; what would not fit is said and left out."""
    attend, rows, quantized = kernels
    for dtype in dtypes(device):
        left_out = []
        for batch, context, fits in attention_grid(model, extent, dtype.itemsize, free_memory(device)):
            if fits:
                yield partial(attention, attend, model, batch, context, dtype)
            else:
                left_out.append(f"batch {batch} × context {context}")
        if left_out:
            print(f"{name}, {dtype}: too little memory for {', '.join(left_out)}", flush=True)
        for batch in BATCHES[extent]:
            yield partial(rms_norm, rows, batch, model.hidden, dtype)
            yield partial(fused_add_rms_norm, rows, max(batch, 4), model.hidden, dtype)
            yield partial(silu_and_mul, rows, batch, model.feed_forward, dtype)
            for format in ("int8", "int4"):
                yield partial(matmul, quantized, format, batch, model.hidden, model.feed_forward, dtype)


def dtypes(device: str) -> tuple[torch.dtype, ...]:
    return (torch.float16, torch.bfloat16) if device == "cuda" else (torch.float32, torch.bfloat16)


def free_memory(device: str) -> int:
    """Bytes."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def compiled(case: Case) -> Case:
    """The case with torch eager's call compiled as one more peer."""
    return replace(case, others={**case.others, "torch compile": torch.compile(case.peer)})


def environment(device: str) -> dict[str, Any]:
    """What the figures depend on: machine, versions, commit, variants."""
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu[0].partition(": ")[2],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit or None,
        "variants": {kernel.metadata.name: kernel.variant for kernel in get_loaded_kernels()},
    }


def main() -> int:
    args = parse()
    torch.manual_seed(0)
    said = peers.found(args.device)
    for name, what in said.items():
        print(f"peer {name}: {what}", flush=True)
    kernels = tuple(get_local_kernel(args.packages / name, backend=args.device) for name in NAMES)
    machine = probes(torch.get_num_threads()) if args.device == "cpu" else {}
    results = []
    with torch.device(args.device), torch.inference_mode():
        for make in chosen(args, kernels):
            case = make()
            results.append(
                measure(compiled(case) if args.compile else case, args.repeats, args.device, machine)
            )
            print(line(results[-1]), flush=True)
    about = environment(args.device)
    if args.out:
        data = {"environment": about | {"peers": said}, "results": [asdict(result) for result in results]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(data, indent=2) + "\n")
    if args.plot:
        for path in plots.draw(results, f"{about['device']}, torch {about['torch']}", args.plot):
            print(f"wrote {path}")
    return 0


def chosen(args: argparse.Namespace, kernels: tuple[ModuleType, ...]) -> Iterator[Make]:
    if not args.model:
        yield from standard_cases(kernels, args.device)
    for name in args.model:
        yield from model_cases(kernels, args.device, name, MODELS[name], "full" if args.full else "quick")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "khub bench kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, help="folder of built packages")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", action="append", default=[], choices=MODELS, help="repeat for more")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick", action="store_true", help="of a model: batch 1 and 16, context to 4k (the default)"
    )
    extent.add_argument("--full", action="store_true", help="of a model: batch 1 to 256, context 128 to 128k")
    parser.add_argument(
        "--compile", action="store_true", help="also against torch.compile of torch eager's call"
    )
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each (30)")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--plot", type=Path, help="draw them there, as .png and .svg")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
