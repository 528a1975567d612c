"""Every kernel slot in plain torch: what runs without a hub, and what hub kernels are compared with.

Functions have the names and arguments of the packages that replace them. They follow transformers' eager
order of operations, so that greedy tokens agree. Shapes: T tokens of S sequences, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.nn import functional

from .batch import Batch
from .quant.packed import PackedWeight, dequantize, matmul, quantize

__all__ = [
    "PackedWeight",
    "attend",
    "dequantize",
    "fused_add_rms_norm",
    "gelu_tanh_and_mul",
    "matmul",
    "plan_step",
    "prepack",
    "qk_norm_rope_cache",
    "quantize",
    "reshape_and_cache_flash",
    "rms_norm",
    "rotary_embedding",
    "silu_and_mul",
]


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    tree_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence's newest tokens over its paged keys and values.

    query [T, q_heads, head_size]; caches [num_blocks, block_size, kv_heads, head_size]; block_tables int32
    [S, max_blocks]; seq_lens int32 [S] counts the tokens in the cache, those of `query` included;
    query_start_loc int32 [S + 1]. window: a token sees that many, its own included. softcap: scores become
    softcap * tanh(scores / softcap). tree_mask: int32 [T, W]; of a sequence's last 32 * W tokens, a row sees only
    those whose bits are set (bit b of word w, the least significant first: number w * 32 + b), and what a window
    counts are those that a row sees. Returns [T, q_heads, head_size].
    """
    out = torch.empty_like(query)
    block_size = key_cache.shape[1]
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    for row, length in enumerate(lengths):
        start, end = starts[row], starts[row + 1]
        blocks = block_tables[row, : -(-length // block_size)]
        # Cut to the length before any arithmetic: the tail of the last block may hold anything, NaN included.
        keys = key_cache[blocks].flatten(0, 1)[:length].transpose(0, 1)
        values = value_cache[blocks].flatten(0, 1)[:length].transpose(0, 1)
        visible = None
        if end - start > 1 or window is not None or tree_mask is not None:
            positions = torch.arange(length, device=query.device)
            own = positions[length - (end - start) :, None]
            visible = positions <= own
            if tree_mask is not None:
                visible = _within_tree(visible, tree_mask[start:end])
                places = visible.cumsum(dim=1)
                positions, own = places - 1, places[:, -1:] - 1
            if window is not None:
                visible &= positions > own - window
        new = query[start:end].transpose(0, 1)
        if softcap:
            attended = _capped_attention(new, keys, values, visible, scale, softcap)
        else:
            attended = functional.scaled_dot_product_attention(
                new, keys, values, attn_mask=visible, scale=scale, enable_gqa=True
            )
        out[start:end] = attended.transpose(0, 1)
    return out


def _within_tree(visible: torch.Tensor, tree_mask: torch.Tensor) -> torch.Tensor:
    """What is visible [new tokens, length] of a sequence when its last tokens are those of a tree."""
    bits = (tree_mask[:, :, None] >> torch.arange(32, device=tree_mask.device)) & 1
    seen = bits.flatten(1).to(torch.bool)
    tail = min(seen.shape[1], visible.shape[1])
    before = visible.shape[1] - tail
    return torch.cat((visible[:, :before], visible[:, before:] & seen[:, seen.shape[1] - tail :]), dim=1)


def _capped_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores are squeezed; query [q_heads, T, head_size], keys and values [kv_heads, S, …]."""
    group = len(query) // len(keys)
    keys, values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)
    scores = torch.tanh(query @ keys.transpose(1, 2) * scale / softcap) * softcap
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ values


def reshape_and_cache_flash(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Write key and value [T, kv_heads, head_size] into slots slot_mapping int64 [T]; -1 is skipped."""
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    key_cache.view(-1, *key.shape[1:])[slots] = key[kept]
    value_cache.view(-1, *value.shape[1:])[slots] = value[kept]


def rms_norm(out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    """out = input / rms(input) * weight along the last dimension; the mean square is taken in float32."""
    wide = input.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    torch.mul(weight, wide.to(input.dtype), out=out)


def fused_add_rms_norm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> None:
    """residual += input, then input = rms_norm(residual); both in place."""
    residual += input
    rms_norm(input, residual, weight, epsilon)


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> None:
    """Rotate query and key [T, heads * head_size] in place by the angles of positions int64 [T].

    cos_sin_cache [context, head_size] holds cosines, then sines. `is_neox` pairs an element with the one half
    a head away, otherwise with its neighbour.
    """
    cos, sin = cos_sin_cache[positions, None].chunk(2, dim=-1)
    for tensor in (query, key):
        heads = tensor.view(len(positions), -1, head_size)
        first, second = heads.chunk(2, dim=-1) if is_neox else (heads[..., ::2], heads[..., 1::2])
        rotated = first * cos - second * sin, second * cos + first * sin
        first.copy_(rotated[0])
        second.copy_(rotated[1])


def qk_norm_rope_cache(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
    is_neox: bool = True,
    epsilon: float = 1e-6,
) -> None:
    """Normalise (with a weight) and rotate the heads of query and key in qkv [T, (num_heads + 2 kv_heads) * head_size].

    The query stays in place, key and value go to slots slot_mapping int64 [T] of the caches; -1 is skipped.
    """
    kv_heads, head_size = key_cache.shape[2:]
    heads = qkv.view(len(qkv), -1, head_size)
    query, key, value = torch.split(heads, [num_heads, kv_heads, kv_heads], dim=1)
    query, key = query.contiguous(), key.contiguous()
    for part, weight in ((query, q_weight), (key, k_weight)):
        if weight is not None:
            rms_norm(part, part.clone(), weight, epsilon)
    rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)
    heads[:, :num_heads] = query
    reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping)


def silu_and_mul(out: torch.Tensor, input: torch.Tensor) -> None:
    """out = silu(gate) * up, where input [..., 2d] is (gate, up) and out [..., d]."""
    gate, up = input.chunk(2, dim=-1)
    torch.mul(functional.silu(gate), up, out=out)


def gelu_tanh_and_mul(out: torch.Tensor, input: torch.Tensor) -> None:
    """out = gelu(gate) * up by tanh's approximation, with input and out as for silu_and_mul."""
    gate, up = input.chunk(2, dim=-1)
    torch.mul(functional.gelu(gate, approximate="tanh"), up, out=out)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] times the transpose of weight [N, K], plus bias [N]: [..., N]."""
    return functional.linear(x, weight, bias)


def plan_step(
    seq_lens: Sequence[int],
    query_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    *,
    tokens: Sequence[Sequence[int]],
) -> Batch:
    """Lay out a step: of each sequence the last `query_lens` of the first `seq_lens` of its `tokens`.

    A sequence with more tokens than `seq_lens` has more to compute, and no row of it is sampled.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for end, count, blocks, ids in zip(seq_lens, query_lens, block_tables, tokens, strict=True):
        token_ids += ids[end - count : end]
        positions += range(end - count, end)
        slots += [blocks[p // block_size] * block_size + p % block_size for p in range(end - count, end)]
    starts = list(accumulate(query_lens, initial=0))
    widest = max(map(len, block_tables))
    tables = [[*blocks, *[0] * (widest - len(blocks))] for blocks in block_tables]
    complete = [
        row - 1 for row, end, ids in zip(starts[1:], seq_lens, tokens, strict=True) if end == len(ids)
    ]
    return Batch(
        tokens=torch.tensor(token_ids),
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        block_tables=torch.tensor(tables, dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        sample_rows=torch.tensor(complete, dtype=torch.int64),
    )


def prepack(packed: PackedWeight) -> PackedWeight:
    """The same weight in the order in which `matmul` takes it fastest; plain torch has none of its own."""
    return packed
