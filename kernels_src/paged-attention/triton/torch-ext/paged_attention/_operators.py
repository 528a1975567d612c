"""The operators: what is checked before a kernel runs, and how it is launched."""

from typing import NamedTuple, Optional

import torch
import triton

from ._fp8 import E4M3, E5M2, SAME
from ._kernels import (
    attend_kernel,
    convert_fp8_kernel,
    copy_blocks_kernel,
    merge_states_kernel,
    write_cache_kernel,
)
from ._launch import (
    check,
    check_dims,
    check_float,
    check_inner_stride,
    check_like,
    check_size,
    name_of,
    on_device,
    register,
)

# Writes and copies move bits, so they move them as integers.
_BITS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}
_CACHE_TYPES = {torch.float8_e4m3fn: E4M3.value, torch.float8_e5m2: E5M2.value}


class _Cache(NamedTuple):
    """A paged cache of either layout; ``key`` and ``value`` are the strides that the kernels take.

    ``key``: of a block, a slot, a head and a chunk of ``chunk`` items; ``value``: of a block, a slot, a head, an item.
    """

    type: int
    num_blocks: int
    block_size: int
    num_heads: int
    head_size: int
    chunk: int
    key: tuple[int, int, int, int]
    value: tuple[int, int, int, int]


def _paged_cache(key: torch.Tensor, value: torch.Tensor, reference: torch.Tensor) -> _Cache:
    check(
        key.dtype == reference.dtype or key.dtype in _CACHE_TYPES,
        f"key_cache must be {name_of(reference.dtype)}, Float8_e4m3fn or Float8_e5m2, got {name_of(key.dtype)}",
    )
    for tensor, name in ((key, "key_cache"), (value, "value_cache")):
        check_like(tensor, name, reference, key.dtype)
    held = _CACHE_TYPES.get(key.dtype, SAME.value)
    if key.dim() == 4:
        check_dims(value, "value_cache", 4)
        for i in range(4):
            check_size(value, "value_cache", i, key.shape[i])
        check_inner_stride(key, "key_cache")
        check_inner_stride(value, "value_cache")
        key_strides, value_strides = (*key.stride()[:3], 0), (*value.stride()[:3], 1)
        cache = _Cache(held, *key.shape, key.shape[3], key_strides, value_strides)
    else:
        check_dims(key, "key_cache", 5)
        check_dims(value, "value_cache", 4)
        check_inner_stride(key, "key_cache")
        blocks, heads, chunks, block_size, chunk = key.shape
        for i, size in enumerate((blocks, heads, chunks * chunk, block_size)):
            check_size(value, "value_cache", i, size)
        key_strides = (key.stride(0), key.stride(3), key.stride(1), key.stride(2))
        value_strides = (value.stride(0), value.stride(3), value.stride(1), value.stride(2))
        cache = _Cache(held, blocks, block_size, heads, chunks * chunk, chunk, key_strides, value_strides)
    for size, what in (
        (cache.head_size, "a head size of at least 1"),
        (cache.block_size, "a block size of at least 1"),
        (cache.num_heads, "at least 1 KV head"),
    ):
        check(size >= 1, f"key_cache must have {what}, got {size}")
    return cache


def _check_scales(
    k_scale: Optional[torch.Tensor], v_scale: Optional[torch.Tensor], reference: torch.Tensor, cache: _Cache
) -> None:
    for scale, name in ((k_scale, "k_scale"), (v_scale, "v_scale")):
        if scale is not None:
            held = name_of(reference.dtype)
            check(
                cache.type != SAME.value,
                f"{name} needs an FP8 cache: leave it out, the dtype of key_cache is {held}",
            )
            check_like(scale, name, reference, torch.float32)
            check(scale.numel() == 1, f"{name} must have 1 element, got {scale.numel()}")


def _as_stored(cache: torch.Tensor) -> torch.Tensor:
    return cache.view(torch.uint8) if cache.dtype in _CACHE_TYPES else cache


def attend(
    out: torch.Tensor,
    lse: Optional[torch.Tensor],
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: Optional[torch.Tensor],
    alibi_slopes: Optional[torch.Tensor],
    sinks: Optional[torch.Tensor],
    k_scale: Optional[torch.Tensor],
    v_scale: Optional[torch.Tensor],
    tree_mask: Optional[torch.Tensor],
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
) -> None:
    _check_query(out, lse, query)
    cache = _paged_cache(key_cache, value_cache, query)
    num_tokens, num_heads, head_size = query.shape
    found = cache.head_size
    check(found == head_size, f"key_cache must have the head size of query, {head_size}, got {found}")
    check(head_size <= 256, f"query must have a head size of at most 256, got {head_size}")
    check(
        num_heads % cache.num_heads == 0,
        f"query must have a multiple of the {cache.num_heads} KV heads of key_cache, got {num_heads} heads",
    )
    _check_scales(k_scale, v_scale, query, cache)
    _check_step(query, block_tables, seq_lens, query_start_loc)
    for heads, name in ((alibi_slopes, "alibi_slopes"), (sinks, "sinks")):
        if heads is not None:
            check_like(heads, name, query, torch.float32)
            check_dims(heads, name, 1)
            check_size(heads, name, 0, num_heads)
            check_inner_stride(heads, name)
    if tree_mask is not None:
        check(causal, "tree_mask needs causal attention")
        check_like(tree_mask, "tree_mask", query, torch.int32)
        check_dims(tree_mask, "tree_mask", 2)
        check_size(tree_mask, "tree_mask", 0, num_tokens)
        check(tree_mask.shape[1] >= 1, "tree_mask must have a word of 32 tokens or more, got none")
        check_inner_stride(tree_mask, "tree_mask")
    check(window >= 0, f"window must not be negative, got {window}")
    check(causal or window == 0, "window needs causal attention")
    check(softcap >= 0, f"softcap must not be negative, got {softcap}")
    num_seqs, group = seq_lens.shape[0], num_heads // cache.num_heads
    if num_tokens == 0 or num_heads == 0:
        return
    group_padded = max(16, triton.next_power_of_2(group))

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        tokens = max(meta["ROWS"], group_padded) // group
        tiles = num_seqs if query_start_loc is None else num_tokens // tokens + num_seqs
        return tiles, cache.num_heads

    with on_device(query):
        attend_kernel[grid](
            out,
            lse,
            query,
            _as_stored(key_cache),
            _as_stored(value_cache),
            block_tables,
            seq_lens,
            query_start_loc,
            alibi_slopes,
            sinks,
            k_scale,
            v_scale,
            tree_mask,
            scale,
            softcap,
            window,
            num_seqs,
            cache.num_blocks,
            num_heads,
            block_tables.stride(0),
            0 if tree_mask is None else tree_mask.stride(0),
            *out.stride()[:2],
            *query.stride()[:2],
            *cache.key,
            *cache.value,
            HEAD=head_size,
            HEAD_PADDED=max(16, triton.next_power_of_2(head_size)),
            GROUP=group,
            GROUP_PADDED=group_padded,
            BLOCK_SIZE=cache.block_size,
            CHUNK=cache.chunk,
            CACHE=cache.type,
            CAUSAL=causal,
            WINDOW=window > 0,
            SOFTCAP=softcap > 0,
            WORDS=0 if tree_mask is None else tree_mask.shape[1],
            DECODE=num_tokens <= num_seqs,
        )


def _check_query(out: torch.Tensor, lse: Optional[torch.Tensor], query: torch.Tensor) -> None:
    check_float(query, "query")
    check_dims(query, "query", 3)
    check_inner_stride(query, "query")
    check_like(out, "out", query, query.dtype)
    check_dims(out, "out", 3)
    for i in range(3):
        check_size(out, "out", i, query.shape[i])
    check_inner_stride(out, "out")
    if lse is not None:
        check_like(lse, "lse", query, torch.float32)
        check_dims(lse, "lse", 2)
        for i in range(2):
            check_size(lse, "lse", i, query.shape[i])
        check(lse.is_contiguous(), "lse must be contiguous")


def _check_step(
    query: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: Optional[torch.Tensor],
) -> None:
    check_like(seq_lens, "seq_lens", query, torch.int32)
    check_dims(seq_lens, "seq_lens", 1)
    check_inner_stride(seq_lens, "seq_lens")
    num_seqs = seq_lens.shape[0]
    check_like(block_tables, "block_tables", query, torch.int32)
    check_dims(block_tables, "block_tables", 2)
    check_size(block_tables, "block_tables", 0, num_seqs)
    check_inner_stride(block_tables, "block_tables")
    if query_start_loc is None:
        check_size(query, "query", 0, num_seqs)
    else:
        check_like(query_start_loc, "query_start_loc", query, torch.int32)
        check_dims(query_start_loc, "query_start_loc", 1)
        check_size(query_start_loc, "query_start_loc", 0, num_seqs + 1)
        check_inner_stride(query_start_loc, "query_start_loc")
    tokens = query.shape[0]
    check(tokens == 0 or num_seqs > 0, f"query has {tokens} tokens, but seq_lens names no sequence")


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_scale: Optional[torch.Tensor],
    v_scale: Optional[torch.Tensor],
) -> None:
    check_float(key, "key")
    check_dims(key, "key", 3)
    check_inner_stride(key, "key")
    check_like(value, "value", key, key.dtype)
    check_dims(value, "value", 3)
    for i in range(3):
        check_size(value, "value", i, key.shape[i])
    check_inner_stride(value, "value")
    cache = _paged_cache(key_cache, value_cache, key)
    _check_scales(k_scale, v_scale, key, cache)
    check_size(key, "key", 1, cache.num_heads)
    check_size(key, "key", 2, cache.head_size)
    check_like(slot_mapping, "slot_mapping", key, torch.int64)
    check_dims(slot_mapping, "slot_mapping", 1)
    check_inner_stride(slot_mapping, "slot_mapping")
    slots, tokens = slot_mapping.shape[0], key.shape[0]
    # A step padded for a CUDA graph has more keys than slots; the rest is not written.
    check(slots <= tokens, f"slot_mapping must not be longer than the {tokens} tokens of key, got {slots}")
    if slots == 0:
        return
    items = cache.num_heads * cache.head_size
    block = min(1024, triton.next_power_of_2(items))
    tensors = key, value, key_cache, value_cache
    if cache.type == SAME.value:
        tensors = tuple(tensor.view(_BITS[key.element_size()]) for tensor in tensors)
    with on_device(key):
        write_cache_kernel[(slots, triton.cdiv(items, block))](
            *map(_as_stored, tensors),
            k_scale,
            v_scale,
            slot_mapping,
            cache.num_blocks * cache.block_size,
            items,
            *key.stride()[:2],
            *value.stride()[:2],
            *cache.key,
            *cache.value,
            HEAD=cache.head_size,
            BLOCK_SIZE=cache.block_size,
            CHUNK=cache.chunk,
            CACHE=cache.type,
            BLOCK=block,
        )


def copy_blocks(
    key_caches: list[torch.Tensor], value_caches: list[torch.Tensor], block_mapping: torch.Tensor
) -> None:
    check_like(block_mapping, "block_mapping", block_mapping, torch.int64)
    check_dims(block_mapping, "block_mapping", 2)
    check_size(block_mapping, "block_mapping", 1, 2)
    check(block_mapping.is_contiguous(), "block_mapping must be contiguous")
    keys, values = len(key_caches), len(value_caches)
    check(keys == values, f"value_caches must be as many as the {keys} key_caches, got {values}")
    caches = [*key_caches, *value_caches]
    for cache in caches:
        check(cache.device == block_mapping.device, "caches must be on the device of block_mapping")
        if cache.element_size() > 1:  # one byte of any kind is copied as it is
            check_float(cache, "caches")
        check(cache.dim() >= 2, f"caches must have blocks in dimension 0, got {cache.dim()} dimensions")
        _block_items(cache, "caches")
    for cache in caches:
        items = _block_items(cache, "caches")
        if items and block_mapping.shape[0] and cache.shape[0]:
            with on_device(cache):
                copy_blocks_kernel[(block_mapping.shape[0], triton.cdiv(items, 1024))](
                    cache.view(_BITS[cache.element_size()]),
                    block_mapping,
                    cache.shape[0],
                    cache.stride(0),
                    items,
                    BLOCK=1024,
                )


def merge_states(
    out: torch.Tensor,
    out_lse: torch.Tensor,
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
) -> None:
    check_float(out_a, "out_a")
    for tensor, name in ((out_a, "out_a"), (out_b, "out_b"), (out, "out")):
        check_like(tensor, name, out_a, out_a.dtype)
        check_dims(tensor, name, 3)
        for i in range(3):
            check_size(tensor, name, i, out_a.shape[i])
        check_inner_stride(tensor, name)
    for tensor, name in ((lse_a, "lse_a"), (lse_b, "lse_b"), (out_lse, "out_lse")):
        check_like(tensor, name, out_a, torch.float32)
        check_dims(tensor, name, 2)
        for i in range(2):
            check_size(tensor, name, i, out_a.shape[i])
        check(tensor.is_contiguous(), f"{name} must be contiguous")
    tokens, heads, head_size = out_a.shape
    rows = tokens * heads
    if rows == 0:
        return
    with on_device(out):
        merge_states_kernel[(triton.cdiv(rows, 8),)](
            out,
            out_lse,
            out_a,
            lse_a,
            out_b,
            lse_b,
            rows,
            heads,
            head_size,
            *out.stride()[:2],
            *out_a.stride()[:2],
            *out_b.stride()[:2],
            BLOCK_M=8,
            BLOCK=triton.next_power_of_2(max(head_size, 1)),
        )


def convert_fp8(output: torch.Tensor, input: torch.Tensor, scale: float) -> None:
    narrow = output.dtype in _CACHE_TYPES
    check(
        narrow != (input.dtype in _CACHE_TYPES),
        "one of output and input must be Float8_e4m3fn or Float8_e5m2 and the other not, got "
        f"{name_of(output.dtype)} and {name_of(input.dtype)}",
    )
    check_float(*((input, "input") if narrow else (output, "output")))
    check_like(input, "input", output, input.dtype)
    check_dims(input, "input", output.dim())
    check(output.dim() >= 1, "output must have a dimension or more, got none")
    for i in range(output.dim()):
        check_size(input, "input", i, output.shape[i])
    items = _block_items(output, "output")
    _block_items(input, "input")
    total = output.numel()
    if total == 0:
        return
    with on_device(output):
        convert_fp8_kernel[(triton.cdiv(total, 1024),)](
            _as_stored(output),
            _as_stored(input),
            float(scale),
            total,
            items,
            output.stride(0),
            input.stride(0),
            CACHE=_CACHE_TYPES[output.dtype if narrow else input.dtype],
            NARROW=narrow,
            BLOCK=1024,
        )


def _block_items(cache: torch.Tensor, name: str) -> int:
    """The items of one block, which must be contiguous whatever the distance between blocks."""
    items = 1
    for i in reversed(range(1, cache.dim())):
        check(
            cache.shape[i] <= 1 or cache.stride(i) == items,
            f"{name} must have contiguous blocks, got stride {cache.stride(i)} in dimension {i}",
        )
        items *= cache.shape[i]
    return items


register(
    "attend",
    "(Tensor(a!) out, Tensor(b!)? lse, Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_tables, "
    "Tensor seq_lens, Tensor? query_start_loc, Tensor? alibi_slopes, Tensor? sinks, Tensor? k_scale, "
    "Tensor? v_scale, Tensor? tree_mask, float scale, bool causal, int window, float softcap) -> ()",
    attend,
)
register(
    "reshape_and_cache",
    "(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slot_mapping, "
    "Tensor? k_scale, Tensor? v_scale) -> ()",
    reshape_and_cache,
)
register(
    "merge_states",
    "(Tensor(a!) out, Tensor(b!) out_lse, Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) -> ()",
    merge_states,
)
register(
    "convert_fp8",
    "(Tensor(a!) output, Tensor input, float scale) -> ()",
    convert_fp8,
)
register(
    "copy_blocks",
    "(Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor block_mapping) -> ()",
    copy_blocks,
)
