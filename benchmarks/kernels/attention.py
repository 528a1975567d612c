"""Attention over a paged cache: a decode step, and the prefill of a prompt."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from .case import Case
from .models import Model


def attention(kernel: ModuleType, model: Model, batch: int, context: int, dtype: torch.dtype) -> Case:
    """Decode attention: one new token for each of `batch` sequences of `context` tokens."""
    heads, kv_heads, size, block = model.heads, model.kv_heads, model.head_size, 16
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
        inputs={"query": query, "key_cache": key_cache, "value_cache": value_cache, **arguments},
    )


def prefill(kernel: ModuleType, model: Model, tokens: int, dtype: torch.dtype) -> Case:
    """One prompt whose keys and values are in the cache; torch gets them laid out beforehand."""
    heads, kv_heads, size, block = model.heads, model.kv_heads, model.head_size, 16
    key_cache = torch.randn(tokens // block, block, kv_heads, size, dtype=dtype)
    value_cache = torch.randn_like(key_cache)
    tables = torch.randperm(tokens // block)[None].int()
    query = torch.randn(tokens, heads, size, dtype=dtype)
    arguments: dict[str, Any] = {
        "block_tables": tables,
        "seq_lens": torch.tensor([tokens], dtype=torch.int32),
        "query_start_loc": torch.tensor([0, tokens], dtype=torch.int32),
        "scale": size**-0.5,
    }
    pages = tables[0].long()
    queries = query.transpose(0, 1)[None].contiguous()
    keys, values = (
        c[pages].flatten(0, 1).transpose(0, 1)[None].contiguous() for c in (key_cache, value_cache)
    )

    def eager() -> torch.Tensor:
        out = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)

    def exact() -> (
        torch.Tensor
    ):  # one head at a time: as float64 the logits of one are 32 MiB, on a GPU 512 MiB
        rows = []
        for head in range(heads):
            q = queries[:, head].double()
            k, v = (tensor[:, head * kv_heads // heads].double() for tensor in (keys, values))
            rows.append(functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0])
        return torch.stack(rows, dim=1)

    return Case(
        "attend (prefill)",
        f"{tokens} tokens",
        dtype,
        4 * tokens * tokens * heads * size // 2,
        lambda: kernel.attend(query, key_cache, value_cache, **arguments),
        eager,
        exact,
        "fma",
        inputs={"query": query, "key_cache": key_cache, "value_cache": value_cache, **arguments},
    )
