"""The row-wise steps in plain torch and float64, written from their definitions."""

from __future__ import annotations

import torch


def rms_norm(x, weight, epsilon):
    x = x.double()
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight.double()


def silu_and_mul(x):
    gate, up = x.double().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


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
