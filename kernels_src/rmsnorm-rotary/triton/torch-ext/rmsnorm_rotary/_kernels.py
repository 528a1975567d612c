"""The kernels. Each is bound by memory: what a program reads a second time it finds in the cache."""

import triton
import triton.language as tl

from ._launch import tuned


@tuned(
    [triton.Config({"BLOCK": 1024}, num_warps=4)]
    + [
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block in (2048, 4096, 8192)
        for warps in (4, 8, 16)
    ],
    key=["size", "ADD"],
    restore_value=["out", "residual"],  # it may be in place
)
@triton.jit
def rms_norm_kernel(
    out,
    input,
    residual,
    weight,
    epsilon,
    size,
    out_row,
    input_row,
    residual_row,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program is one row: the sum of squares, then the row again. ``residual`` is ``input`` without ADD."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(input + row * input_row + column, mask=column < size, other=0.0).to(tl.float32)
        if ADD:
            x += tl.load(residual + row * residual_row + column, mask=column < size, other=0.0).to(tl.float32)
        squares += x * x
    scale = 1 / tl.sqrt_rn(tl.sum(squares, 0) / size + epsilon)
    for start in range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(input + row * input_row + column, mask=column < size, other=0.0).to(tl.float32)
        if ADD:
            x += tl.load(residual + row * residual_row + column, mask=column < size, other=0.0).to(tl.float32)
            total = x.to(residual.dtype.element_ty)
            tl.store(residual + row * residual_row + column, total, mask=column < size)
        w = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
        tl.store(out + row * out_row + column, (x * scale * w).to(out.dtype.element_ty), mask=column < size)


@tuned(
    [triton.Config({"BLOCK": block}, num_warps=4) for block in (1024, 512, 2048, 4096)],
    key=["size"],
)
@triton.jit
def activate_kernel(
    out, input, size, out_row, input_row, gate, up, threshold, BLOCK: tl.constexpr, FUNCTION: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """A program is up to BLOCK columns of one row; `gate` and `up` are the columns where they begin."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    x = tl.load(input + row * input_row + gate + column, mask=mask, other=0.0).to(tl.float32)
    if FUNCTION == 0:
        result = x / (1 + tl.exp(-x))
    elif FUNCTION == 1:
        result = x * 0.5 * (1 + tl.erf(x * 0.70710678))
    elif FUNCTION == 2:
        result = x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif FUNCTION == 3:
        result = x / (1 + tl.exp(-1.702 * x))
    else:
        result = tl.where(x <= threshold, 0.0, x)
    if GATED:  # rounded as between two of torch's operators
        by = tl.load(input + row * input_row + up + column, mask=mask, other=0.0).to(tl.float32)
        result = result.to(out.dtype.element_ty).to(tl.float32) * by
    tl.store(out + row * out_row + column, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _rotate(
    data, first_head, heads, head_stride, cos, sin, HALF: tl.constexpr, HALF_PADDED: tl.constexpr, NEOX: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    head = first_head + tl.arange(0, BLOCK_H)
    pair = tl.arange(0, HALF_PADDED)
    mask = (head < heads)[:, None] & (pair < HALF)[None, :]
    if NEOX:
        left = data + head[:, None] * head_stride + pair[None, :]
        right = left + HALF
    else:
        left = data + head[:, None] * head_stride + 2 * pair[None, :]
        right = left + 1
    x = tl.load(left, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(right, mask=mask, other=0.0).to(tl.float32)
    tl.store(left, (x * cos[None, :] - y * sin[None, :]).to(data.dtype.element_ty), mask=mask)
    tl.store(right, (y * cos[None, :] + x * sin[None, :]).to(data.dtype.element_ty), mask=mask)


@triton.jit
def rotary_kernel(
    positions,
    query,
    key,
    cos_sin_cache,
    max_position,
    cache_row,
    query_heads,
    query_token,
    query_head,
    key_heads,
    key_token,
    key_head,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    NEOX: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A program is one token and up to BLOCK_H heads, those of the key after those of the query."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    if (position < 0) | (position >= max_position):
        return
    pair = tl.arange(0, HALF_PADDED)
    row = cos_sin_cache + position * cache_row
    cos = tl.load(row + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    sin = tl.load(row + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    of_query = (query_heads + BLOCK_H - 1) // BLOCK_H
    block = tl.program_id(1)
    if block < of_query:
        data = query + token * query_token
        _rotate(data, block * BLOCK_H, query_heads, query_head, cos, sin, HALF, HALF_PADDED, NEOX, BLOCK_H)
    else:
        data = key + token * key_token
        first = (block - of_query) * BLOCK_H
        _rotate(data, first, key_heads, key_head, cos, sin, HALF, HALF_PADDED, NEOX, BLOCK_H)


@triton.jit
def _norm_and_rotate(
    data, to, first_head, heads, data_head, to_head, weight, epsilon, cos, sin, HEAD: tl.constexpr, HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr, NEOX: tl.constexpr, NORM: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    head = first_head + tl.arange(0, BLOCK_H)
    pair = tl.arange(0, HALF_PADDED)
    mask = (head < heads)[:, None] & (pair < HALF)[None, :]
    left = pair if NEOX else 2 * pair
    right = left + (HALF if NEOX else 1)
    of_data, of_to = data + head[:, None] * data_head, to + head[:, None] * to_head
    x = tl.load(of_data + left[None, :], mask=mask, other=0.0).to(tl.float32)
    y = tl.load(of_data + right[None, :], mask=mask, other=0.0).to(tl.float32)
    rest = 2 * HALF + tl.arange(0, REST_PADDED)
    rest_mask = (head < heads)[:, None] & (rest < HEAD)[None, :]
    z = tl.load(of_data + rest[None, :], mask=rest_mask, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(x * x, 1) + tl.sum(y * y, 1) + tl.sum(z * z, 1)
        scale = (1 / tl.sqrt_rn(squares / HEAD + epsilon))[:, None]
        x = x * scale * tl.load(weight + left, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        y = y * scale * tl.load(weight + right, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        z = z * scale * tl.load(weight + rest, mask=rest < HEAD, other=0.0).to(tl.float32)[None, :]
    dtype = to.dtype.element_ty
    tl.store(of_to + left[None, :], (x * cos[None, :] - y * sin[None, :]).to(dtype), mask=mask)
    tl.store(of_to + right[None, :], (y * cos[None, :] + x * sin[None, :]).to(dtype), mask=mask)
    tl.store(of_to + rest[None, :], z.to(dtype), mask=rest_mask)


@triton.jit
def qk_norm_rope_cache_kernel(
    qkv,
    q_weight,
    k_weight,
    positions,
    cos_sin_cache,
    key_cache,
    value_cache,
    slot_mapping,
    epsilon,
    max_position,
    cache_row,
    qkv_row,
    num_heads,
    kv_heads,
    num_slots,
    num_mapped,
    key_block,
    key_token,
    key_head,
    value_block,
    value_token,
    value_head,
    BLOCK_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    REST_PADDED: tl.constexpr,
    NEOX: tl.constexpr,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A program is one token and up to BLOCK_H heads: of the query, or after those of the key, and of the value."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    if (position < 0) | (position >= max_position):
        return
    pair = tl.arange(0, HALF_PADDED)
    row = cos_sin_cache + position * cache_row
    cos = tl.load(row + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    sin = tl.load(row + HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    of_query = (num_heads + BLOCK_H - 1) // BLOCK_H
    block = tl.program_id(1)
    query = qkv + token * qkv_row
    if block < of_query:
        first = block * BLOCK_H
        _norm_and_rotate(
            query, query, first, num_heads, HEAD, HEAD, q_weight, epsilon, cos, sin,
            HEAD, HALF, HALF_PADDED, REST_PADDED, NEOX, NORM_Q, BLOCK_H,
        )  # fmt: skip
    else:
        slot = tl.load(slot_mapping + token, mask=token < num_mapped, other=-1)
        if (slot < 0) | (slot >= num_slots):
            return
        first = (block - of_query) * BLOCK_H
        key = query + num_heads * HEAD
        to = key_cache + slot // BLOCK_SIZE * key_block + slot % BLOCK_SIZE * key_token
        _norm_and_rotate(
            key, to, first, kv_heads, HEAD, key_head, k_weight, epsilon, cos, sin,
            HEAD, HALF, HALF_PADDED, REST_PADDED, NEOX, NORM_K, BLOCK_H,
        )  # fmt: skip
        head, column = first + tl.arange(0, BLOCK_H), tl.arange(0, HEAD_PADDED)
        mask = (head < kv_heads)[:, None] & (column < HEAD)[None, :]
        value = key + kv_heads * HEAD + head[:, None] * HEAD + column[None, :]
        to = value_cache + slot // BLOCK_SIZE * value_block + slot % BLOCK_SIZE * value_token
        tl.store(to + head[:, None] * value_head + column[None, :], tl.load(value, mask=mask), mask=mask)


@triton.jit
def _place(at_0, at_1, at_2, at_3, stride_0, stride_1, stride_2, stride_3):
    return at_0 * stride_0 + at_1 * stride_1 + at_2 * stride_2 + at_3 * stride_3


@triton.jit
def apply_rotary_kernel(
    x1, x2, cos, sin, out1, out2, total, size_1, size_2, size_3,
    x1_0, x1_1, x1_2, x1_3,
    x2_0, x2_1, x2_2, x2_3,
    cos_0, cos_1, cos_2, cos_3,
    sin_0, sin_1, sin_2, sin_3,
    out1_0, out1_1, out1_2, out1_3,
    out2_0, out2_1, out2_2, out2_3,
    CONJ: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program is BLOCK pairs, of a shape of four dimensions in which each tensor has its strides."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < total
    at_3, row = index % size_3, index // size_3
    at_2, row = row % size_2, row // size_2
    at_1, at_0 = row % size_1, row // size_1
    x = tl.load(x1 + _place(at_0, at_1, at_2, at_3, x1_0, x1_1, x1_2, x1_3), mask=mask).to(tl.float32)
    y = tl.load(x2 + _place(at_0, at_1, at_2, at_3, x2_0, x2_1, x2_2, x2_3), mask=mask).to(tl.float32)
    c = tl.load(cos + _place(at_0, at_1, at_2, at_3, cos_0, cos_1, cos_2, cos_3), mask=mask).to(tl.float32)
    s = tl.load(sin + _place(at_0, at_1, at_2, at_3, sin_0, sin_1, sin_2, sin_3), mask=mask).to(tl.float32)
    if CONJ:
        s = -s
    dtype = out1.dtype.element_ty
    to_1 = out1 + _place(at_0, at_1, at_2, at_3, out1_0, out1_1, out1_2, out1_3)
    to_2 = out2 + _place(at_0, at_1, at_2, at_3, out2_0, out2_1, out2_2, out2_3)
    tl.store(to_1, (x * c - y * s).to(dtype), mask=mask)
    tl.store(to_2, (x * s + y * c).to(dtype), mask=mask)
