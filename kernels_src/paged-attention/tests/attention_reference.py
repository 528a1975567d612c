"""Paged attention in plain torch and float64, written from the definition: one sequence at a time."""

from __future__ import annotations

import itertools

import torch


def gather(cache: torch.Tensor, table: list[int], length: int) -> torch.Tensor:
    """The first `length` tokens of a sequence, [length, kv_heads, head_size], from a flash-layout cache."""
    block_size = cache.shape[1]
    if length == 0:
        return cache.new_zeros((0, *cache.shape[2:]))
    return torch.stack([cache[table[i // block_size], i % block_size] for i in range(length)])


def attend(
    query,
    key_cache,
    value_cache,
    *,
    block_tables,
    seq_lens,
    query_start_loc,
    scale,
    causal=True,
    window=None,
    softcap=0.0,
    alibi_slopes=None,
    sinks=None,
    k_scale=None,
    v_scale=None,
    tree_mask=None,
):
    """As the kernel's `attend` with `return_lse=True`, in float64 and for the flash layout."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    sink = torch.full(query.shape[1:2], -torch.inf) if sinks is None else sinks
    lse = sink.double().expand(query.shape[:2]).clone()
    group = query.shape[1] // key_cache.shape[2]
    for seq, length in enumerate(seq_lens.tolist()):
        begin, end = query_start_loc[seq].item(), query_start_loc[seq + 1].item()
        if begin == end:
            continue
        table = block_tables[seq].tolist()
        keys, values = (
            gather(cache, table, length).double().repeat_interleave(group, dim=1)
            * float(1 if stored is None else stored)
            for cache, stored in ((key_cache, k_scale), (value_cache, v_scale))
        )
        positions = length - end + torch.arange(begin, end)[:, None]
        key_positions = torch.arange(length)[None, :]
        seen = torch.ones(end - begin, length, dtype=torch.bool)
        if causal:
            seen &= key_positions <= positions
        if tree_mask is not None:
            words = tree_mask[begin:end].tolist()
            tail = length - 32 * tree_mask.shape[1]
            for row, key in itertools.product(range(end - begin), range(max(tail, 0), length)):
                seen[row, key] &= bool(words[row][(key - tail) // 32] >> ((key - tail) % 32) & 1)
            key_positions = seen.cumsum(dim=1) - 1  # among the keys that the row sees
            positions = seen.sum(dim=1, keepdim=True) - 1
        if window is not None:
            seen &= key_positions > positions - window
        logits = torch.einsum("thd,khd->htk", query[begin:end].double(), keys) * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        if alibi_slopes is not None:
            logits = logits + alibi_slopes.double()[:, None, None] * (key_positions - positions)
        logits = logits.masked_fill(~seen, -torch.inf)
        logits = torch.cat([logits, sink.double()[:, None, None].expand(-1, end - begin, 1)], dim=-1)
        any_seen = seen.any(dim=1)
        weights = torch.softmax(logits, dim=-1)[:, any_seen, :length]
        out[begin:end][any_seen] = torch.einsum("htk,khd->thd", weights, values)
        lse[begin:end] = torch.logsumexp(logits, dim=-1).T
    return out, lse
