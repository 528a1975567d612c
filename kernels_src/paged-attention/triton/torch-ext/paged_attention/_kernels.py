"""The kernels.

``attend_kernel``: a program is one KV head and up to ROWS rows of one sequence; a row is a query token and one of the
query heads that share the KV head, so keys and values are read once for all of them. Softmax runs along the keys,
BLOCK_N at a time (FlashAttention, Dao et al., 2022). Bound by the bytes of the cache when decoding (each is read once
for ROWS / group tokens), by tensor cores in long prefills. A long sequence is not split among programs.
"""

import triton
import triton.language as tl

from ._launch import dot, tuned


@triton.jit
def _sequence_of(tile, query_start_loc, num_seqs, BLOCK_Q: tl.constexpr):
    """The sequence that a tile belongs to: sequence i has its first one at start // BLOCK_Q + i."""
    low = 0
    high = num_seqs
    while low + 1 < high:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low


# DECODE is in no line of the kernel: steps of single tokens and steps with prefills are tuned apart.
@tuned(
    [
        triton.Config({"ROWS": 16, "BLOCK_N": 32}, num_warps=2, num_stages=2),
        triton.Config({"ROWS": 16, "BLOCK_N": 64}, num_warps=4, num_stages=3),
        triton.Config({"ROWS": 16, "BLOCK_N": 128}, num_warps=4, num_stages=2),
        triton.Config({"ROWS": 32, "BLOCK_N": 64}, num_warps=4, num_stages=2),
        triton.Config({"ROWS": 64, "BLOCK_N": 64}, num_warps=4, num_stages=2),
        triton.Config({"ROWS": 128, "BLOCK_N": 64}, num_warps=8, num_stages=2),
    ],
    key=["HEAD", "GROUP", "BLOCK_SIZE", "CHUNK", "DECODE"],
)
@triton.jit
def attend_kernel(
    out,
    lse,
    query,
    key_cache,
    value_cache,
    block_tables,
    seq_lens,
    query_start_loc,
    alibi_slopes,
    scale,
    softcap,
    window,
    num_seqs,
    num_blocks,
    num_heads,
    table_stride,
    out_token,
    out_head,
    query_token,
    query_head,
    key_block,
    key_slot,
    key_head,
    key_chunk,
    value_block,
    value_slot,
    value_head,
    value_dim,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DECODE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    BLOCK_M: tl.constexpr = ROWS if ROWS > GROUP_PADDED else GROUP_PADDED
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    tile = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    if query_start_loc is None:
        seq = tile
        begin = tile
        count = 1
        first = 0
    else:
        seq = _sequence_of(tile, query_start_loc, num_seqs, BLOCK_Q)
        begin = tl.load(query_start_loc + seq)
        count = tl.load(query_start_loc + seq + 1) - begin
        first = (tile - begin // BLOCK_Q - seq) * BLOCK_Q
    if first >= count:
        return
    length = tl.load(seq_lens + seq)

    row = tl.arange(0, BLOCK_M)
    token = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_seen = (row // GROUP < BLOCK_Q) & (token < count)
    position = length - count + token
    dim = tl.arange(0, HEAD_PADDED)
    where = (begin + token).to(tl.int64)
    q = tl.load(
        query + (where * query_token + head * query_head)[:, None] + dim[None, :],
        mask=row_seen[:, None] & (dim < HEAD)[None, :],
        other=0.0,
    )
    if alibi_slopes is not None:
        slope = tl.load(alibi_slopes + head, mask=row_seen, other=0.0)

    end = length
    start = 0
    if CAUSAL:
        end = tl.minimum(length, length - count + tl.minimum(first + BLOCK_Q, count))
        if WINDOW:
            start = tl.maximum(0, length - count + first - window + 1) // BLOCK_N * BLOCK_N
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_PADDED], tl.float32)
    key_dim = (dim // CHUNK) * key_chunk + dim % CHUNK
    for n in range(start, end, BLOCK_N):
        key_position = n + tl.arange(0, BLOCK_N)
        there = key_position < end
        block = tl.load(
            block_tables + seq.to(tl.int64) * table_stride + key_position // BLOCK_SIZE, mask=there, other=-1
        ).to(tl.int64)
        there = there & (block >= 0) & (block < num_blocks)
        slot = key_position % BLOCK_SIZE
        k = tl.load(
            key_cache
            + (block * key_block + slot * key_slot + kv_head * key_head)[None, :]
            + key_dim[:, None],
            mask=there[None, :] & (dim < HEAD)[:, None],
            other=0.0,
        )
        logits = dot(q, k) * scale
        if SOFTCAP:
            logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)
        if alibi_slopes is not None:
            logits += slope[:, None] * (key_position[None, :] - position[:, None]).to(tl.float32)
        seen = there[None, :] & row_seen[:, None]
        if CAUSAL:
            seen = seen & (key_position[None, :] <= position[:, None])
            if WINDOW:
                seen = seen & (key_position[None, :] > position[:, None] - window)
        logits = tl.where(seen, logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1))
        # A row that has seen no key yet stays at minus infinity, which must not meet itself in a difference.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(logits - base[:, None])
        kept = tl.exp(largest - base)
        total = total * kept + tl.sum(weights, 1)
        v = tl.load(
            value_cache
            + (block * value_block + slot * value_slot + kv_head * value_head)[:, None]
            + dim[None, :] * value_dim,
            mask=there[:, None] & (dim < HEAD)[None, :],
            other=0.0,
        )
        acc = acc * kept[:, None] + dot(weights.to(v.dtype), v)
        largest = larger

    any_seen = total > 0
    divisor = tl.where(any_seen, total, 1.0)
    tl.store(
        out + (where * out_token + head * out_head)[:, None] + dim[None, :],
        (acc / divisor[:, None]).to(out.dtype.element_ty),
        mask=row_seen[:, None] & (dim < HEAD)[None, :],
    )
    if lse is not None:
        sums = tl.where(any_seen, largest + tl.log(divisor), float("-inf"))
        tl.store(lse + where * num_heads + head, sums, mask=row_seen)


@triton.jit
def write_cache_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slot_mapping,
    num_slots,
    items,
    key_token,
    key_head,
    value_token,
    value_head,
    key_cache_block,
    key_cache_slot,
    key_cache_head,
    key_cache_chunk,
    value_cache_block,
    value_cache_slot,
    value_cache_head,
    value_cache_dim,
    HEAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program copies up to BLOCK of one token's items: each is read and written once."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if (slot < 0) | (slot >= num_slots):
        return
    item = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = item < items
    head, dim = item // HEAD, item % HEAD
    block, slot = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    to_key = block * key_cache_block + slot * key_cache_slot + head * key_cache_head
    to_value = block * value_cache_block + slot * value_cache_slot + head * value_cache_head
    read_key = tl.load(key + token * key_token + head * key_head + dim, mask=mask)
    read_value = tl.load(value + token * value_token + head * value_head + dim, mask=mask)
    tl.store(key_cache + to_key + (dim // CHUNK) * key_cache_chunk + dim % CHUNK, read_key, mask=mask)
    tl.store(value_cache + to_value + dim * value_cache_dim, read_value, mask=mask)


@triton.jit
def copy_blocks_kernel(cache, block_mapping, num_blocks, block_stride, items, BLOCK: tl.constexpr):
    """A program copies up to BLOCK items of one pair of blocks."""
    pair = tl.program_id(0)
    source = tl.load(block_mapping + 2 * pair)
    target = tl.load(block_mapping + 2 * pair + 1)
    if (source < 0) | (source >= num_blocks) | (target < 0) | (target >= num_blocks):
        return
    item = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = item < items
    read = tl.load(cache + source * block_stride + item, mask=mask)
    tl.store(cache + target * block_stride + item, read, mask=mask)
