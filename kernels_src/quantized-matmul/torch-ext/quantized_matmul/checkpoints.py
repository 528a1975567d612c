"""int4 weights as checkpoints store them, repacked: nothing is rounded.

Eight 4-bit values share an int32, the lowest bits first. With N outputs, K inputs and G groups of inputs:
    AWQ      qweight [K, N / 8] and qzeros [G, N / 8], the columns of each eight in the order 0 2 4 6 1 3 5 7;
             scales [G, N]
    GPTQ     qweight [K / 8, N], packed along K; qzeros [G, N / 8]; scales [G, N]; g_idx [K], the group of each
             column, where groups are not of consecutive ones (act-order)
    32 rows  bytes [N, K / 2] that hold, for 32 outputs and two inputs at a time, the first 16 outputs in the low halves
             and the others in the high ones; zeros uint8 [G, N]; scales [G, N]
"""

from typing import Optional

import torch

from .packed import PackedWeight

__all__ = ["from_awq", "from_gptq", "from_rows_of_32"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_GROUPS = (32, 64, 128, 256, 512)
_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where of an int32's eight values those of eight consecutive columns are."""


def from_awq(
    qweight: torch.Tensor, qzeros: Optional[torch.Tensor], scales: torch.Tensor, group_size: int = 128
) -> PackedWeight:
    """The weight of a linear layer that AWQ has quantized to 4 bits (version "gemm").

    Args:
        qweight: int32 ``[K, N / 8]``.
        qzeros: int32 ``[K / group_size, N / 8]``, or None where the zero point of all is 8.
        scales: float16, bfloat16 or float32 ``[K / group_size, N]``; they keep their dtype.
        group_size: 32, 64, 128, 256 or 512, or K or -1 for one group.

    Raises:
        ValueError: a shape, dtype or group size that is not one of these.
    """
    _check_dims(qweight, "qweight", torch.int32)
    columns, rows = qweight.shape[0], qweight.shape[1] * 8
    group_size, groups = _groups(columns, group_size)
    _check(scales, "scales", (groups, rows), None)
    zeros = None
    if qzeros is not None:
        _check(qzeros, "qzeros", (groups, rows // 8), torch.int32)
        zeros = _in_order(qzeros)
    return _pack(_in_order(qweight), scales, zeros, group_size)


def from_gptq(
    qweight: torch.Tensor,
    qzeros: Optional[torch.Tensor],
    scales: torch.Tensor,
    g_idx: Optional[torch.Tensor] = None,
    group_size: int = 128,
    zero_offset: int = 1,
    bits: int = 4,
) -> PackedWeight:
    """The weight of a linear layer that GPTQ has quantized to 4 bits.

    Args:
        qweight: int32 ``[K / 8, N]``.
        qzeros: int32 ``[K / group_size, N / 8]``, or None where the zero point of all is 8.
        scales: float16, bfloat16 or float32 ``[K / group_size, N]``; they keep their dtype.
        g_idx: integers ``[K]``, the group of each column, each group whole. Where that is not the order of the
            columns, the result has a ``permutation``.
        group_size: 32, 64, 128, 256 or 512, or K or -1 for one group.
        zero_offset: what a stored zero point lacks: 1 in the checkpoint_format "gptq", 0 in "gptq_v2".
        bits: of the checkpoint; only 4.

    Raises:
        ValueError: a shape, dtype, group size or number of bits that is not one of these, or a g_idx that does
            not give each group ``group_size`` columns.
    """
    if bits != 4:
        raise ValueError(
            f"bits must be 4, got {bits}: dequantize the checkpoint and quantize it to int8 or int4"
        )
    if zero_offset not in (0, 1):
        raise ValueError(f"zero_offset must be 1 (gptq) or 0 (gptq_v2), got {zero_offset}")
    _check_dims(qweight, "qweight", torch.int32)
    columns, rows = qweight.shape[0] * 8, qweight.shape[1]
    group_size, groups = _groups(columns, group_size)
    _check(scales, "scales", (groups, rows), None)
    zeros = None
    if qzeros is not None:
        if rows % 8:
            raise ValueError(
                f"qweight has N={rows} columns, which is not divisible by the 8 that qzeros packs"
            )
        _check(qzeros, "qzeros", (groups, rows // 8), torch.int32)
        zeros = (_unpack(qzeros) + zero_offset) & 15
    values = _unpack(qweight.T).T
    permutation = None if g_idx is None else _permutation(g_idx, columns, group_size)
    if permutation is not None:
        values = values[permutation]
    return _pack(values, scales, zeros, group_size, permutation)


def from_rows_of_32(
    weight: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_size: int
) -> PackedWeight:
    """The weight that ``gemm_int4_forward`` is given.

    Args:
        weight: uint8 ``[N, K / 2]``, N a multiple of 32.
        zeros: uint8 ``[K / group_size, N]``, 0 to 15.
        scales: float16, bfloat16 or float32 ``[K / group_size, N]``; they keep their dtype.
        group_size: 32, 64, 128, 256 or 512, or K or -1 for one group.

    Raises:
        ValueError: a shape, dtype or group size that is not one of these.
    """
    _check_dims(weight, "weight", torch.uint8)
    rows, columns = weight.shape[0], weight.shape[1] * 2
    if rows % 32:
        raise ValueError(f"weight must have a multiple of 32 rows, got {rows}")
    group_size, groups = _groups(columns, group_size)
    _check(scales, "scales", (groups, rows), None)
    _check(zeros, "zeros", (groups, rows), torch.uint8)
    if bool((zeros > 15).any()):
        raise ValueError(f"zeros must be 0 to 15, got {int(zeros.max())}")
    blocks = weight.reshape(rows // 32, columns // 2, 16, 2)
    values = torch.stack((blocks & 15, blocks >> 4), dim=2)  # [N / 32, K / 2, half, 16, parity of k]
    return _pack(values.permute(1, 4, 0, 2, 3).reshape(columns, rows), scales, zeros, group_size)


def _pack(
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: Optional[torch.Tensor],
    group_size: int,
    permutation: Optional[torch.Tensor] = None,
) -> PackedWeight:
    """From uint8 values [K, N], and scales and zeros [G, N]. Without zero points of its own a weight is cheaper."""
    shape = (values.shape[1], values.shape[0])
    if shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 0, 0, 1))
    packed = (values[0::2] | (values[1::2] << 4)).T.contiguous()
    symmetric = zeros is None or bool((zeros == 8).all())
    return PackedWeight(
        shape=shape,
        format="int4",
        group_size=group_size,
        weight=packed,
        scales=scales.T.contiguous(),
        zeros=None if symmetric else zeros.T.contiguous(),
        permutation=permutation,
    )


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    """int32 [R, C] to uint8 [R, 8 C], the lowest bits first."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    return ((packed[..., None] >> shifts) & 15).to(torch.uint8).flatten(1)


def _in_order(packed: torch.Tensor) -> torch.Tensor:
    """AWQ's int32 [R, C] to uint8 [R, 8 C], a column in its place."""
    eights = _unpack(packed).view(packed.shape[0], -1, 8)
    return eights[..., _AWQ_PLACES].flatten(1)


def _permutation(g_idx: torch.Tensor, columns: int, group_size: int) -> Optional[torch.Tensor]:
    """The columns in the order of their groups, int32; None if they are already."""
    if g_idx.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"g_idx must be int32 or int64, got {g_idx.dtype}")
    _check(g_idx, "g_idx", (columns,), g_idx.dtype)
    natural = torch.arange(columns, device=g_idx.device)
    order = g_idx.argsort(stable=True)
    if not torch.equal(g_idx[order].long(), natural // group_size):
        raise ValueError(
            f"g_idx must give each of {columns // group_size} groups {group_size} columns; "
            "is group_size that of the checkpoint?"
        )
    return None if torch.equal(order, natural) else order.to(torch.int32)


def _groups(columns: int, group_size: int) -> tuple[int, int]:
    """The size of a group, and their number."""
    if group_size in (-1, columns):
        return columns, 1
    if group_size not in _GROUPS:
        raise ValueError(f"group_size must be 32, 64, 128, 256, 512, K={columns} or -1, got {group_size}")
    if columns % group_size:
        raise ValueError(f"K={columns} is not divisible by group_size={group_size}")
    return group_size, columns // group_size


def _check_dims(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> None:
    if tensor.dim() != 2 or tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise ValueError(f"{name} must have 2 dimensions of at least 1, got shape {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")


def _check(tensor: torch.Tensor, name: str, shape: tuple[int, ...], dtype: Optional[torch.dtype]) -> None:
    """`dtype`: None for the floats that scales may be."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be of shape {shape}, got {tuple(tensor.shape)}; is group_size right?")
    if dtype is None and tensor.dtype not in _FLOATS:
        raise ValueError(f"{name} must be float32, float16 or bfloat16, got {tensor.dtype}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
