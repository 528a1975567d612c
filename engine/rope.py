"""Rotary position embedding: the table of cosines and sines that the rotary kernel reads."""

from __future__ import annotations

import math

import torch

from .config import Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Radians per position of each rotated pair, float32 [head_dim / 2].

    "linear" divides every frequency by `factor`. "llama3" divides only those whose wavelength is longer than
    the trained context, leaves the short ones, and blends between (Llama 3.1's released code).
    """
    frequencies = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if rope.kind == "default":
        return frequencies
    if rope.kind == "linear":
        return frequencies / rope.factor
    wavelengths = 2 * math.pi / frequencies
    longest_kept = rope.original_context / rope.high_freq_factor
    shortest_scaled = rope.original_context / rope.low_freq_factor
    blend = (rope.original_context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * frequencies / rope.factor + blend * frequencies
    scaled = torch.where(wavelengths > shortest_scaled, frequencies / rope.factor, blended)
    return torch.where(wavelengths < longest_kept, frequencies, scaled)


def cos_sin_cache(rope: Rope, head_dim: int, context: int, dtype: torch.dtype) -> torch.Tensor:
    """[context, head_dim]: cosines of each position's angles, then their sines; computed in float32."""
    positions = torch.arange(context, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope, head_dim))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)
