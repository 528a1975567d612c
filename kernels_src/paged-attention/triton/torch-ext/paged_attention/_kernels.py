"""The kernels.

``attend_kernel``: a program is one KV head and up to ROWS rows of one sequence; a row is a query token and one of the
query heads that share the KV head, so keys and values are read once for all of them. Softmax runs along the keys,
BLOCK_N at a time (FlashAttention, Dao et al., 2022). Bound by the bytes of the cache when decoding (each is read once
for ROWS / group tokens), by tensor cores in long prefills. A long sequence is not split among programs.
"""

import triton
import triton.language as tl

from ._fp8 import SAME, decode, encode
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


@triton.jit
def _count(bits):
    """How many of the low 32 bits are set, of int64."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101 >> 24) & 0xFF


@triton.jit
def _low(count):
    """The lowest ``count`` of 32 bits, fewer than none and more than all as none and all."""
    one = tl.full([1], 1, tl.int64)
    return (one << tl.minimum(tl.maximum(count, 0), 32).to(tl.int64)) - 1


@triton.jit
def _seen_before(tree_mask, row_at, row_seen, position, key_position, tail, WORDS: tl.constexpr):
    """How many keys each row (a column) sees before each position (a row): all before the tree, then by bits."""
    rank = tl.zeros_like(position + key_position) + tl.minimum(tl.maximum(tail, 0), key_position)
    for word in tl.static_range(WORDS):
        first = tail + 32 * word
        bits = tl.load(tree_mask + row_at + word, mask=row_seen, other=0).to(tl.int64) & 0xFFFFFFFF
        bits = bits & _low(position - first + 1) & ~_low(-first)
        rank += _count(bits & _low(key_position - first)).to(tl.int32)
    return rank


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
    key=["HEAD", "GROUP", "BLOCK_SIZE", "CHUNK", "CACHE", "WORDS", "DECODE"],
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
    sinks,
    k_scale,
    v_scale,
    tree_mask,
    scale,
    softcap,
    window,
    num_seqs,
    num_blocks,
    num_heads,
    table_stride,
    tree_stride,
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
    CACHE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WORDS: tl.constexpr,
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
    if k_scale is not None:
        scale = scale * tl.load(k_scale)
    if alibi_slopes is not None:
        slope = tl.load(alibi_slopes + head, mask=row_seen, other=0.0)

    end = length
    start = 0
    if CAUSAL:
        end = tl.minimum(length, length - count + tl.minimum(first + BLOCK_Q, count))
        if WINDOW:
            furthest = length - count + first
            if tree_mask is not None:  # a row may see few of the tree's tokens, and as many more before them
                furthest = tl.minimum(furthest, length - 32 * WORDS - 1)
            start = tl.maximum(0, furthest - window + 1) // BLOCK_N * BLOCK_N
    # Windows and ALiBi count the keys that a row sees; without a tree those are the positions.
    own_rank = position[:, None]
    if tree_mask is not None:
        tail = length - 32 * WORDS
        row_at = (where * tree_stride)[:, None]
        if WINDOW or alibi_slopes is not None:
            beyond = (position + 1)[:, None]
            own_rank = _seen_before(tree_mask, row_at, row_seen[:, None], own_rank, beyond, tail, WORDS) - 1
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
            other=0,
        )
        if CACHE != SAME:
            k = decode(k, CACHE).to(q.dtype)
        logits = dot(q, k) * scale
        if SOFTCAP:
            logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)
        key_rank = key_position[None, :]
        seen = there[None, :] & row_seen[:, None]
        if CAUSAL:
            seen = seen & (key_rank <= position[:, None])
        if tree_mask is not None:
            bit = key_position - tail
            words = tl.load(
                tree_mask + row_at + (bit // 32)[None, :], mask=seen & (bit >= 0)[None, :], other=-1
            ).to(tl.int64)
            seen = seen & (((words >> (bit % 32).to(tl.int64)[None, :]) & 1) != 0)
            if WINDOW or alibi_slopes is not None:
                key_rank = _seen_before(
                    tree_mask, row_at, row_seen[:, None], position[:, None], key_rank, tail, WORDS
                )
        if alibi_slopes is not None:
            logits += slope[:, None] * (key_rank - own_rank).to(tl.float32)
        if WINDOW:
            seen = seen & (key_rank > own_rank - window)
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
            other=0,
        )
        if CACHE != SAME:
            v = decode(v, CACHE).to(q.dtype)
        acc = acc * kept[:, None] + dot(weights, v)
        largest = larger

    if sinks is not None:
        sink = tl.load(sinks + head, mask=row_seen, other=0.0)
        larger = tl.maximum(largest, sink)
        base = tl.where(larger == float("-inf"), 0.0, larger)
        kept = tl.exp(largest - base)
        total = total * kept + tl.exp(sink - base)
        acc = acc * kept[:, None]
        largest = larger
    any_seen = total > 0
    divisor = tl.where(any_seen, total, 1.0)
    acc = acc / divisor[:, None]
    if v_scale is not None:
        acc = acc * tl.load(v_scale)
    tl.store(
        out + (where * out_token + head * out_head)[:, None] + dim[None, :],
        acc.to(out.dtype.element_ty),
        mask=row_seen[:, None] & (dim < HEAD)[None, :],
    )
    if lse is not None:
        sums = tl.where(any_seen, largest + tl.log(divisor), float("-inf"))
        tl.store(lse + where * num_heads + head, sums, mask=row_seen)


@triton.jit
def merge_states_kernel(
    out,
    out_lse,
    out_a,
    lse_a,
    out_b,
    lse_b,
    rows,
    num_heads,
    head_size,
    out_token,
    out_head,
    a_token,
    a_head,
    b_token,
    b_head,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program joins BLOCK_M rows, each a token's head: all is read once and written once."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = row < rows
    token, head = row // num_heads, row % num_heads
    first = tl.load(lse_a + row, mask=there, other=float("-inf"))
    second = tl.load(lse_b + row, mask=there, other=float("-inf"))
    larger = tl.maximum(first, second)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    one = tl.exp(first - base)
    two = tl.exp(second - base)
    total = one + two
    divisor = tl.where(total > 0, total, 1.0)
    dim = tl.arange(0, BLOCK)[None, :]
    inside = there[:, None] & (dim < head_size)
    # A part that saw no key says nothing: what is in its output, a NaN perhaps, is not looked at.
    at = (token * a_token + head * a_head)[:, None] + dim
    a = tl.load(out_a + at, mask=inside & (one > 0)[:, None], other=0.0).to(tl.float32)
    at = (token * b_token + head * b_head)[:, None] + dim
    b = tl.load(out_b + at, mask=inside & (two > 0)[:, None], other=0.0).to(tl.float32)
    merged = a * (one / divisor)[:, None] + b * (two / divisor)[:, None]
    at = (token * out_token + head * out_head)[:, None] + dim
    tl.store(out + at, merged.to(out.dtype.element_ty), mask=inside)
    sums = tl.where(total > 0, base + tl.log(divisor), float("-inf"))
    tl.store(out_lse + row, sums, mask=there)


@triton.jit
def convert_fp8_kernel(
    output,
    input,
    scale,
    total,
    items,
    output_block,
    input_block,
    CACHE: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program converts BLOCK numbers, of blocks of ``items`` in turn: each is read once and written once."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = item < total
    block, item = item // items, item % items
    read = tl.load(input + block * input_block + item, mask=mask, other=0)
    if NARROW:
        converted = encode(tl.div_rn(read.to(tl.float32), tl.zeros([BLOCK], tl.float32) + scale), CACHE)
    else:
        converted = (decode(read, CACHE) * scale).to(output.dtype.element_ty)
    tl.store(output + block * output_block + item, converted, mask=mask)


@triton.jit
def write_cache_kernel(
    key,
    value,
    key_cache,
    value_cache,
    k_scale,
    v_scale,
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
    CACHE: tl.constexpr,
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
    if CACHE != SAME:
        read_key, read_value = read_key.to(tl.float32), read_value.to(tl.float32)
        if k_scale is not None:
            read_key = tl.div_rn(read_key, tl.zeros([BLOCK], tl.float32) + tl.load(k_scale))
        if v_scale is not None:
            read_value = tl.div_rn(read_value, tl.zeros([BLOCK], tl.float32) + tl.load(v_scale))
        read_key, read_value = encode(read_key, CACHE), encode(read_value, CACHE)
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
