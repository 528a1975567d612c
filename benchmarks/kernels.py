"""The kernels against torch eager, in one run: first checked against float64, then timed in turn.

    python benchmarks/kernels.py --packages .demo/dist [--device cpu|cuda] [--out benchmarks/results/NAME.json]

`--packages` is a folder of built packages (`khub build … --out FOLDER/NAME`). Each case runs the kernel and its
peer alternately; a row gives the median, least and greatest time of each, the work that must be done (bytes, or
operations), the rate, and the ratio of medians (above 1: the kernel is faster). On a CPU what the same cores reach at
most, reading, copying or multiplying and adding, is measured in the same turns; a row gives the part of that which
the kernel reaches, the best of each.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from _machine import Probe, probes
from torch.nn import functional

from hub_loader import get_loaded_kernels, get_local_kernel

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    """A kernel call, its peer's, and the result both must have. Neither call may change its inputs' meaning.

    `work` is in bytes, or where it is held against `fma` in operations.
    """

    name: str
    shape: str
    dtype: torch.dtype
    work: int
    kernel: Callable[[], torch.Tensor]
    peer: Callable[[], torch.Tensor]
    reference: Callable[[], torch.Tensor]
    against: str = "read"


@dataclass(frozen=True)
class Result:
    """One row; times in microseconds, rates in GB/s or GFLOP/s, error relative to the reference's largest element.

    `percent` of what the probe `against` reached in the same turns; None on a GPU, which has no such probe yet.
    """

    name: str
    shape: str
    dtype: str
    relative_error: float
    kernel_us: tuple[float, float, float]
    peer_us: tuple[float, float, float]
    giga_per_second: float
    ratio: float
    against: str
    percent: float | None


def attention(kernel: ModuleType, batch: int, context: int, dtype: torch.dtype) -> Case:
    """Decode attention of Qwen3-0.6B's shape: 16 query heads, 8 KV heads of 128."""
    heads, kv_heads, size, block = 16, 8, 128, 16
    blocks = context // block
    key_cache = torch.randn(batch * blocks, block, kv_heads, size, dtype=dtype)
    value_cache = torch.randn_like(key_cache)
    tables = torch.randperm(batch * blocks).view(batch, blocks).int()
    query = torch.randn(batch, heads, size, dtype=dtype)
    arguments: dict[str, Any] = {
        "block_tables": tables,
        "seq_lens": torch.full((batch,), context, dtype=torch.int32),
        "query_start_loc": torch.arange(batch + 1, dtype=torch.int32),
        "scale": size**-0.5,
    }

    def gathered(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = (c[tables.long()].flatten(1, 2).transpose(1, 2) for c in (k, v))
        out = functional.scaled_dot_product_attention(q[:, :, None], keys, values, enable_gqa=True)
        return out[:, :, 0]

    def exact() -> torch.Tensor:  # one sequence at a time: as float64 the caches together are gigabytes
        rows = []
        for sequence in range(batch):
            keys, values = (
                c[tables[sequence].long()].flatten(0, 1).transpose(0, 1).double()
                for c in (key_cache, value_cache)
            )
            one = query[sequence, :, None].double()
            rows.append(functional.scaled_dot_product_attention(one, keys, values, enable_gqa=True)[:, 0])
        return torch.stack(rows)

    return Case(
        "attend (decode)",
        f"batch {batch}, context {context}",
        dtype,
        2 * key_cache.numel() * dtype.itemsize,
        lambda: kernel.attend(query, key_cache, value_cache, **arguments),
        lambda: gathered(query, key_cache, value_cache),
        exact,
    )


def fused_add_rms_norm(kernel: ModuleType, tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    """In place: a call normalizes what the last one left, and adds it to a residual that stays finite."""
    x, residual = torch.randn(tokens, hidden, dtype=dtype), torch.randn(tokens, hidden, dtype=dtype)
    weight = torch.randn(hidden, dtype=dtype)
    start = residual[:4].clone(), x[:4].clone()

    def run() -> torch.Tensor:
        kernel.fused_add_rms_norm(x, residual, weight, 1e-6)
        return x[:4]

    def eager() -> torch.Tensor:
        residual.add_(x)
        x.copy_(functional.rms_norm(residual, (hidden,), weight, 1e-6))
        return x

    def reference() -> torch.Tensor:
        residual[:4], x[:4] = start
        return functional.rms_norm((start[0].double() + start[1].double()), (hidden,), weight.double(), 1e-6)

    moved = 4 * x.numel() * dtype.itemsize
    return Case("fused_add_rms_norm", f"{tokens} × {hidden}", dtype, moved, run, eager, reference, "copy")


def rms_norm(kernel: ModuleType, tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    x, weight = torch.randn(tokens, hidden, dtype=dtype), torch.randn(hidden, dtype=dtype)
    out = torch.empty_like(x)

    def run() -> torch.Tensor:
        kernel.rms_norm(out, x, weight, 1e-6)
        return out

    return Case(
        "rms_norm",
        f"{tokens} × {hidden}",
        dtype,
        2 * x.numel() * dtype.itemsize,
        run,
        lambda: functional.rms_norm(x, (hidden,), weight, 1e-6),
        lambda: functional.rms_norm(x.double(), (hidden,), weight.double(), 1e-6),
    )


def silu_and_mul(kernel: ModuleType, tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    x = torch.randn(tokens, 2 * hidden, dtype=dtype)
    out = torch.empty(tokens, hidden, dtype=dtype)

    def run() -> torch.Tensor:
        kernel.silu_and_mul(out, x)
        return out

    def eager(value: torch.Tensor) -> torch.Tensor:
        gate, up = value.chunk(2, dim=-1)
        return functional.silu(gate) * up

    moved = 3 * out.numel() * dtype.itemsize
    shape = f"{tokens} × {hidden}"
    return Case("silu_and_mul", shape, dtype, moved, run, lambda: eager(x), lambda: eager(x.double()))


def rotary(kernel: ModuleType, tokens: int, dtype: torch.dtype) -> Case:
    """As transformers' models call it: 32 query heads, 8 KV heads of 64. For one token it is mostly calls of torch."""
    q, k = (torch.randn(1, tokens, heads, 64, dtype=dtype).transpose(1, 2) for heads in (32, 8))
    angles = torch.randn(1, tokens, 32).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((-x[..., 32:], x[..., :32]), dim=-1)

    def eager(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, cos, sin = given
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    return Case(
        "apply_rotary_transformers",
        f"{tokens} × (32 + 8) × 64",
        dtype,
        2 * (q.numel() + k.numel()) * dtype.itemsize,
        lambda: kernel.apply_rotary_transformers(q, k, cos, sin)[0],
        lambda: eager(q, k, cos, sin)[0],
        lambda: eager(q.double(), k.double(), cos.double(), sin.double())[0],
    )


def matmul(kernel: ModuleType, format: str, tokens: int, size: int, dtype: torch.dtype) -> Case:
    """Against the dense product with the same values: what quantization saves is bytes."""
    weight = torch.randn(size, size, dtype=dtype) / size**0.5
    copies = 12 if tokens == 1 else 1  # a model has many: none is in a cache when its turn comes
    one = kernel.quantize(weight, format)
    packed = [replace(one, weight=one.weight.clone(), scales=one.scales.clone()) for _ in range(copies)]
    dense = [kernel.dequantize(one).to(dtype).clone() for _ in range(copies)]
    x = torch.randn(tokens, size, dtype=dtype)
    stored = packed[0].weight.nbytes + packed[0].scales.nbytes

    def each(call: Callable[[Any], torch.Tensor], weights: list[Any]) -> torch.Tensor:
        for one in weights:
            out = call(one)
        return out

    return Case(
        f"matmul {format}",
        f"{tokens} × {size} × {size}" + (f", {copies} weights" if copies > 1 else ""),
        dtype,
        copies * stored if tokens <= 16 else 2 * tokens * size * size,
        lambda: each(lambda w: kernel.matmul(x, w), packed),
        lambda: each(lambda w: functional.linear(x, w), dense),
        lambda: functional.linear(x.double(), kernel.dequantize(packed[0]).double()),
        "read" if tokens <= 16 else "fma",
    )


def cases(packages: Path, device: str) -> list[Callable[[], Case]]:
    """The cases of a device, made when their turn comes; a GPU gets the batches it is made for."""
    attend, rows, quantized = (
        get_local_kernel(packages / name, backend=device)
        for name in ("paged-attention", "rmsnorm-rotary", "quantized-matmul")
    )
    gpu = device == "cuda"
    found: list[Callable[[], Case]] = []
    for dtype in (torch.float16, torch.bfloat16) if gpu else (torch.float32, torch.bfloat16):
        batches = ((1, 4096), (32, 4096), (256, 1024)) if gpu else ((1, 1024), (32, 4096))
        found += [partial(attention, attend, batch, context, dtype) for batch, context in batches]
        for tokens in (1, 4096) if gpu else (1, 64):
            found.append(partial(rms_norm, rows, tokens, 4096, dtype))
            found.append(partial(silu_and_mul, rows, tokens, 4096, dtype))
            found.append(partial(rotary, rows, tokens, dtype))
        found.append(partial(fused_add_rms_norm, rows, 16384, 4096, dtype))
        for format in ("int8", "int4"):
            found += [partial(matmul, quantized, format, tokens, 4096, dtype) for tokens in (1, 16, 512)]
    return found


def measure(case: Case, repeats: int, device: str, machine: dict[str, Probe]) -> Result:
    """Check, warm up, then time kernel, peer and probe in turn."""
    expected = case.reference()
    error = float((case.kernel().double() - expected).abs().max() / expected.abs().max())
    if not error < TOLERANCE[case.dtype]:
        raise SystemExit(f"{case.name} {case.shape} {case.dtype}: relative error {error:.1e}; not timed")
    case.peer()
    probe = machine.get(case.against)
    kernel, peer, limit = [], [], []
    for _ in range(repeats):
        kernel.append(timed(case.kernel, device))
        peer.append(timed(case.peer, device))
        if probe:
            limit.append(timed(probe.run, device))
    ratio = median(peer) / median(kernel)
    percent = 100 * (case.work / min(kernel)) / (probe.work / min(limit)) if probe else None
    dtype = str(case.dtype).removeprefix("torch.")
    return Result(
        name=case.name,
        shape=case.shape,
        dtype=dtype,
        relative_error=error,
        kernel_us=spread(kernel),
        peer_us=spread(peer),
        giga_per_second=case.work / median(kernel) / 1e3,
        ratio=ratio,
        against=case.against,
        percent=percent,
    )


def timed(call: Callable[[], Any], device: str) -> float:
    """Microseconds of one call; on a GPU of one of twenty in a row, so that launches overlap as in use."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / 20


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return round(median(values), 2), round(min(values), 2), round(max(values), 2)


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


def line(row: Result) -> str:
    unit = "GFLOP/s" if row.against == "fma" else "GB/s"
    part = "" if row.percent is None else f"  {row.percent:>4.0f}% of {row.against}"
    return (
        f"{row.name:<25} {row.shape:<30} {row.dtype:<9} {row.kernel_us[0]:>10.1f} us"
        f"  {row.giga_per_second:>7.1f} {unit}{part}  {row.ratio:>6.2f}x of torch eager  error {row.relative_error:.0e}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, help="folder of built packages")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each (30)")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    results = []
    machine = probes(torch.get_num_threads()) if args.device == "cpu" else {}
    with torch.device(args.device), torch.inference_mode():
        for make in cases(args.packages, args.device):
            results.append(measure(make(), args.repeats, args.device, machine))
            print(line(results[-1]), flush=True)
    if args.out:
        data = {"environment": environment(args.device), "results": [asdict(result) for result in results]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(data, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
