"""The kernels: a program is BLOCK_M by BLOCK_N of the output and walks along K.

Weights are widened to the dtype of x in registers, where they are exact, and multiplied on tensor cores; sums and
scales are float32. Bound by the bytes of the weights for few rows, by the widening for many.
"""

import triton
import triton.language as tl

from ._launch import dot, tuned

_CONFIGS = [
    triton.Config({"BLOCK_N": 32, "BLOCK_K": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_N": 64, "BLOCK_K": 128}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_N": 128, "BLOCK_K": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_N": 128, "BLOCK_K": 64}, num_warps=8, num_stages=3),
]


@tuned(_CONFIGS, key=["n", "k", "BLOCK_M"])
@triton.jit
def int8_matmul_kernel(
    out,
    x,
    weight,
    scales,
    bias,
    m,
    n,
    k,
    out_row,
    x_row,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_at = x + row.to(tl.int64)[:, None] * x_row
    weight_at = weight + column.to(tl.int64)[None, :] * k
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        left = tl.load(x_at + at[None, :], mask=(row < m)[:, None] & (at < k)[None, :], other=0.0)
        right = tl.load(weight_at + at[:, None], mask=(column < n)[None, :] & (at < k)[:, None], other=0)
        acc += dot(left, right.to(tl.float32).to(x.dtype.element_ty))
    scale = tl.load(scales + column, mask=column < n, other=0.0)
    _finish(acc * scale[None, :], out, bias, row, column, m, n, out_row)


@tuned(_CONFIGS, key=["n", "k", "BLOCKS", "BLOCK_M"])
@triton.jit
def fp8_matmul_kernel(
    out,
    x,
    weight,
    scales,
    bias,
    m,
    n,
    k,
    scale_row,
    out_row,
    x_row,
    BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCKS: rows and columns that share a scale, a multiple of BLOCK_K; 0: a scale for each channel."""
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_at = x + row.to(tl.int64)[:, None] * x_row
    weight_at = weight + column.to(tl.int64)[None, :] * k
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        left = tl.load(x_at + at[None, :], mask=(row < m)[:, None] & (at < k)[None, :], other=0.0)
        bits = tl.load(weight_at + at[:, None], mask=(column < n)[None, :] & (at < k)[:, None], other=0)
        # An e4m3 is a float16 whose exponent is 8 too small.
        half = (((bits & 0x80).to(tl.uint16) << 8) | ((bits & 0x7F).to(tl.uint16) << 7)).to(
            tl.float16, bitcast=True
        )
        part = dot(left, (half.to(tl.float32) * 256.0).to(x.dtype.element_ty))
        if BLOCKS:
            scale_at = scales + column // BLOCKS * scale_row + start // BLOCKS
            part *= tl.load(scale_at, mask=column < n, other=0.0)[None, :]
        acc += part
    if not BLOCKS:
        acc *= tl.load(scales + column, mask=column < n, other=0.0)[None, :]
    _finish(acc, out, bias, row, column, m, n, out_row)


@triton.jit
def _finish(acc, out, bias, row, column, m, n, out_row):
    if bias is not None:
        acc += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    at = out + row.to(tl.int64)[:, None] * out_row + column[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=(row < m)[:, None] & (column < n)[None, :])


@tuned(
    [
        triton.Config({"BLOCK_N": block}, num_warps=warps, num_stages=stages)
        for block, warps, stages in ((32, 4, 3), (64, 4, 3), (64, 4, 4), (128, 4, 3), (128, 8, 3))
    ],
    key=["n", "k", "GROUP", "BLOCK_M"],
)
@triton.jit
def int4_matmul_kernel(
    out,
    x,
    weight,
    scales,
    zeros,
    bias,
    m,
    n,
    k,
    row_bytes,
    out_row,
    x_row,
    GROUP: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_J bytes at a time, all of one group: low halves meet the even columns of x, high halves the odd ones."""
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_at = x + row.to(tl.int64)[:, None] * x_row
    weight_at = weight + column.to(tl.int64)[None, :] * row_bytes
    groups_at = column.to(tl.int64) * (k // GROUP)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, row_bytes, BLOCK_J):
        byte_at = start + tl.arange(0, BLOCK_J)
        group = 2 * start // GROUP
        even = tl.load(
            x_at + 2 * byte_at[None, :], mask=(row < m)[:, None] & (2 * byte_at < k)[None, :], other=0.0
        )
        odd = tl.load(
            x_at + 2 * byte_at[None, :] + 1,
            mask=(row < m)[:, None] & (2 * byte_at + 1 < k)[None, :],
            other=0.0,
        )
        packed = tl.load(
            weight_at + byte_at[:, None], mask=(column < n)[None, :] & (byte_at < row_bytes)[:, None], other=0
        ).to(tl.int32)
        if zeros is None:
            zero = 8
        else:
            zero = tl.load(zeros + groups_at + group, mask=column < n, other=0).to(tl.int32)[None, :]
        low = ((packed & 15) - zero).to(tl.float32).to(x.dtype.element_ty)
        high = ((packed >> 4) - zero).to(tl.float32).to(x.dtype.element_ty)
        scale = tl.load(scales + groups_at + group, mask=column < n, other=0.0).to(tl.float32)
        acc += (dot(even, low) + dot(odd, high)) * scale[None, :]
    _finish(acc, out, bias, row, column, m, n, out_row)


# ggml's numbers of the types of blocks.
_Q4_0 = tl.constexpr(2)
_Q8_0 = tl.constexpr(8)
_Q4_K = tl.constexpr(12)
_Q5_K = tl.constexpr(13)
_Q6_K = tl.constexpr(14)


@tuned(
    [
        triton.Config({"BLOCK_N": block}, num_warps=warps, num_stages=stages)
        for block, warps, stages in ((32, 4, 3), (64, 4, 3), (64, 4, 4), (128, 4, 3), (128, 8, 3))
    ],
    key=["n", "k", "KIND", "BLOCK_M"],
)
@triton.jit
def gguf_matmul_kernel(
    out,
    x,
    weight,
    bias,
    m,
    n,
    k,
    row_bytes,
    out_row,
    x_row,
    KIND: tl.constexpr,
    VALUES: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A group of values at a time: whole numbers meet x, their sums the scale, and the minimum the sum of x."""
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (column < n)[None, :]
    lane = tl.arange(0, GROUP)
    x_at = x + row.to(tl.int64)[:, None] * x_row + lane[None, :]
    weight_at = weight + column.to(tl.int64)[None, :] * row_bytes
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, GROUP):
        block = weight_at + start // VALUES * BYTES
        group = start % VALUES // GROUP
        left = tl.load(x_at + start, mask=(row < m)[:, None], other=0.0)
        values = _values(block, group, lane[:, None], inside, KIND)
        products = dot(left, values.to(tl.float32).to(x.dtype.element_ty))
        if KIND == _Q6_K:
            acc += products * (_half(block + 208, inside) * _signed(_byte(block + 192 + group, inside)))
        elif VALUES == 256:
            # Six bits each: of the first four groups in bytes of their own, whose upper two bits are the last four's.
            low = _byte(block + 4 + group % 4, inside)
            high = _byte(block + 8 + group % 4, inside)
            both = _byte(block + 12 + group % 4, inside)
            scale = tl.where(group < 4, low & 63, (both & 15) | (low >> 6 << 4))
            minimum = tl.where(group < 4, high & 63, (both >> 4) | (high >> 6 << 4))
            acc += products * (_half(block, inside) * scale)
            acc -= tl.sum(left.to(tl.float32), axis=1)[:, None] * (_half(block + 2, inside) * minimum)
        else:
            acc += products * _half(block, inside)
    _finish(acc, out, bias, row, column, m, n, out_row)


@triton.jit
def _values(block, group, lane, inside, KIND: tl.constexpr):
    """The whole numbers of a group, [GROUP, BLOCK_N]."""
    if KIND == _Q4_0:
        return ((_byte(block + 2 + lane % 16, inside) >> (lane // 16 * 4)) & 15) - 8
    elif KIND == _Q8_0:
        return _signed(_byte(block + 2 + lane, inside))
    elif KIND == _Q4_K:
        return (_byte(block + 16 + group // 2 * 32 + lane, inside) >> (group % 2 * 4)) & 15
    elif KIND == _Q5_K:
        low = (_byte(block + 48 + group // 2 * 32 + lane, inside) >> (group % 2 * 4)) & 15
        return low | (((_byte(block + 16 + lane, inside) >> group) & 1) << 4)
    else:
        half = group // 8
        quarter = group // 2 % 4
        at = group % 2 * 16 + lane
        low = (_byte(block + half * 64 + quarter % 2 * 32 + at, inside) >> (quarter // 2 * 4)) & 15
        high = (_byte(block + 128 + half * 32 + at, inside) >> (quarter * 2)) & 3
        return (low | (high << 4)) - 32


@triton.jit
def _byte(at, inside):
    return tl.load(at, mask=inside, other=0).to(tl.int32)


@triton.jit
def _signed(byte):
    return (byte ^ 128) - 128


@triton.jit
def _half(at, inside):
    """A float16 at any address, as float32."""
    bits = _byte(at, inside) | (_byte(at + 1, inside) << 8)
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
