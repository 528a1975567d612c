"""The row-wise steps in plain torch and float64, written from their definitions."""

from __future__ import annotations

import torch


def rms_norm(x, weight, epsilon):
    x = x.double()
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight.double()


def fatrelu(x, threshold=0.0):
    return torch.where(x > threshold, x, 0.0)


ACTIVATIONS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * torch.special.ndtr(x),
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "fatrelu": fatrelu,
}
ACTIVATIONS["gelu_fast"] = ACTIVATIONS["gelu_new"] = ACTIVATIONS["gelu_tanh"]


def silu_and_mul(x):
    gate, up = x.double().chunk(2, dim=-1)
    return ACTIVATIONS["silu"](gate) * up


def rotary(positions, x, cos_sin_cache, is_neox):
    """x is [tokens, heads, head_size]. Each pair is a complex number, multiplied by e^(i * angle)."""
    half = cos_sin_cache.shape[1] // 2
    cache = cos_sin_cache.double()[positions]
    turn = torch.complex(cache[:, :half], cache[:, half:])[:, None, :]
    out = x.double().clone()
    rotated = out[..., : 2 * half]
    if is_neox:
        turned = torch.complex(rotated[..., :half], rotated[..., half:]) * turn
        rotated[..., :half], rotated[..., half:] = turned.real, turned.imag
    else:
        turned = torch.complex(rotated[..., 0::2], rotated[..., 1::2]) * turn
        rotated[..., 0::2], rotated[..., 1::2] = turned.real, turned.imag
    return out
