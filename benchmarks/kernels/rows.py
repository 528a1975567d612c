"""The row-wise steps of a layer: norms, gate, rotation."""

from __future__ import annotations

from types import ModuleType

import torch
from torch.nn import functional

from .case import Case


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
