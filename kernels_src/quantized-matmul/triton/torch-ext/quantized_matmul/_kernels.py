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
