"""The row-wise steps of a layer: norms, gate, rotation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch.nn import functional

from .case import Case


def fused_add_rms_norm(kernel: ModuleType, tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    """In place: a call normalizes what the last one left, and adds it to a residual that stays finite."""
    x, residual = torch.randn(tokens, hidden, dtype=dtype), torch.randn(tokens, hidden, dtype=dtype)
    weight = torch.randn(hidden, dtype=dtype)
    start = residual[:4].clone(), x[:4].clone()

    def reset() -> None:
        residual[:4], x[:4] = start

    def run() -> torch.Tensor:
        kernel.fused_add_rms_norm(x, residual, weight, 1e-6)
        return x[:4]

    def eager() -> torch.Tensor:
        residual.add_(x)
        x.copy_(functional.rms_norm(residual, (hidden,), weight, 1e-6))
        return x

    def reference() -> torch.Tensor:
        return functional.rms_norm((start[0].double() + start[1].double()), (hidden,), weight.double(), 1e-6)

    moved = 4 * x.numel() * dtype.itemsize
    shape = f"{tokens} × {hidden}"
    inputs = {"x": x, "residual": residual, "weight": weight, "eps": 1e-6}
    return Case(
        "fused_add_rms_norm", shape, dtype, moved, run, eager, reference, "copy", inputs=inputs, reset=reset
    )


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
        inputs={"x": x, "weight": weight, "eps": 1e-6},
    )


_GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu_and_mul": functional.silu,
    "gelu_tanh_and_mul": partial(functional.gelu, approximate="tanh"),
}


def gate_and_mul(name: str, kernel: ModuleType, tokens: int, hidden: int, dtype: torch.dtype) -> Case:
    """`name` is one of the kernel's functions of a gate and what it is multiplied with."""
    x = torch.randn(tokens, 2 * hidden, dtype=dtype)
    out = torch.empty(tokens, hidden, dtype=dtype)

    def run() -> torch.Tensor:
        getattr(kernel, name)(out, x)
        return out

    def eager(value: torch.Tensor) -> torch.Tensor:
        gate, up = value.chunk(2, dim=-1)
        return _GATES[name](gate) * up

    moved = 3 * out.numel() * dtype.itemsize
    shape = f"{tokens} × {hidden}"
    exact, inputs = (lambda: eager(x.double())), {"x": x}
    return Case(name, shape, dtype, moved, run, lambda: eager(x), exact, inputs=inputs)


silu_and_mul, gelu_tanh_and_mul = (partial(gate_and_mul, name) for name in _GATES)


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
        inputs={"q": q, "k": k, "cos": cos, "sin": sin},
    )


def rotary_embedding(kernel: ModuleType, tokens: int, dtype: torch.dtype) -> Case:
    """As vLLM's models call it: in place, by positions in a table; 32 query heads, 8 KV heads of 128."""
    size = 128
    query, key = (torch.randn(tokens, heads * size, dtype=dtype) for heads in (32, 8))
    positions, start = torch.randint(4096, (tokens,)), query.clone()
    angles = torch.outer(torch.arange(4096), 1e6 ** -(torch.arange(0, size, 2) / size))
    table = torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)

    def reset() -> None:
        query.copy_(start)

    def turned(x: torch.Tensor) -> torch.Tensor:
        cos, sin = table[positions, None].to(x.dtype).chunk(2, dim=-1)
        first, second = x.view(tokens, -1, size).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(1)

    def run() -> torch.Tensor:
        kernel.rotary_embedding(positions, query, key, size, table, True)
        return query

    def eager() -> torch.Tensor:
        key.copy_(turned(key))
        return query.copy_(turned(query))

    return Case(
        "rotary_embedding",
        f"{tokens} × (32 + 8) × {size}",
        dtype,
        2 * (query.numel() + key.numel()) * dtype.itemsize,
        run,
        eager,
        lambda: turned(start.double()),
        inputs={"positions": positions, "query": query, "key": key, "table": table, "head_size": size},
        reset=reset,
    )


def qk_norm_rope_cache(kernel: ModuleType, tokens: int, dtype: torch.dtype) -> Case:
    """From a projection of Qwen3-8B's heads, 32 and twice 8 of 128, to attention; tokens fill the cache in order."""
    heads, kv_heads, size, block = 32, 8, 128, 16
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size, dtype=dtype)
    norms = torch.rand(2, size, dtype=dtype) + 0.5
    positions, slots = torch.arange(tokens), torch.arange(tokens)
    cache = torch.zeros(2, -(-tokens // block), block, kv_heads, size, dtype=dtype)
    angles = torch.outer(positions, 1e6 ** -(torch.arange(0, size, 2) / size))
    table = torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)
    start = qkv[:4].clone()

    def run() -> torch.Tensor:
        kernel.qk_norm_rope_cache(qkv, *norms, positions, table, *cache, slots, heads, True, 1e-6)
        return qkv[:4, : heads * size]

    def turned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        cos, sin = table[: len(x), None].to(x.dtype).chunk(2, dim=-1)
        first, second = functional.rms_norm(x, (size,), weight.to(x.dtype), 1e-6).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def eager() -> torch.Tensor:
        query, key, value = qkv.view(tokens, -1, size).split((heads, kv_heads, kv_heads), dim=1)
        query.copy_(turned(query, norms[0]))
        cache[0].view(-1, kv_heads, size)[slots] = turned(key, norms[1])
        cache[1].view(-1, kv_heads, size)[slots] = value
        return qkv[:4, : heads * size]

    def reset() -> None:
        qkv[:4] = start

    def reference() -> torch.Tensor:
        query = start[:, : heads * size].double().view(-1, heads, size)
        return turned(query, norms[0]).flatten(1)

    moved = 2 * qkv.numel() * dtype.itemsize
    shape = f"{tokens} × (32 + 2 × 8) × 128"
    against = "copy" if tokens > 64 else "read"
    return Case("qk_norm_rope_cache", shape, dtype, moved, run, eager, reference, against, reset=reset)
