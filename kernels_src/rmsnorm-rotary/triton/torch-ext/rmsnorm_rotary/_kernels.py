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
def silu_and_mul_kernel(out, input, size, out_row, input_row, BLOCK: tl.constexpr):
    """A program is up to BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    gate = tl.load(input + row * input_row + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(input + row * input_row + size + column, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1 + tl.exp(-gate)) * up
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
