"""Rotary embedding by several positions for each token: time, height and width of what a model sees (mRoPE)."""

from collections.abc import Sequence

import torch


def mrope_cos_sin(
    positions: torch.Tensor, cos_sin_cache: torch.Tensor, sections: Sequence[int], interleaved: bool = False
) -> torch.Tensor:
    """Each token's cosines and sines, where every pair of a head turns by one of the token's positions.

    Made once for a step, they serve all its layers: as the ``cos_sin_cache`` of ``rotary_embedding`` and
    ``qk_norm_rope_cache``, where a token's position is then its place, ``torch.arange(num_tokens)``.
    mRoPE is from Qwen2-VL (Wang et al., 2024), its interleaved form from Qwen3-VL.

    Args:
        positions: int64 ``[axes, num_tokens]``, as many axes as sections.
        cos_sin_cache: ``[max_position, rotary_dim]``, cosines then sines.
        sections: how many of the ``rotary_dim / 2`` pairs turn by each axis.
        interleaved: axes take turns, pair by pair, as long as they have pairs left, and the first has what remains;
            otherwise the first pairs are the first axis's, then come the next one's.

    Returns:
        ``[num_tokens, rotary_dim]``, of the dtype of the cache.

    Raises:
        ValueError: positions of another shape, or sections that are not all pairs.
        IndexError: on the CPU a position out of range.
    """
    pairs = cos_sin_cache.shape[1] // 2
    if positions.dim() != 2 or positions.shape[0] != len(sections):
        raise ValueError(
            f"positions must be [{len(sections)}, num_tokens], one row for each of the sections {list(sections)}, "
            f"got {list(positions.shape)}"
        )
    if min(sections, default=0) < 0 or sum(sections) != pairs:
        raise ValueError(f"sections must add up to the {pairs} pairs of cos_sin_cache, got {list(sections)}")
    # By slices alone, so that nothing is copied from the host and a CUDA graph can hold it.
    rows = cos_sin_cache[positions].view(*positions.shape, 2, pairs)
    if not interleaved:
        parts = torch.split(rows, list(sections), dim=-1)
        return torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1).flatten(1)
    out, axes = rows[0].clone(), len(sections)
    for axis in range(1, axes):
        turns = slice(axis, axes * sections[axis], axes)
        out[..., turns] = rows[axis, ..., turns]
    return out.flatten(1)
