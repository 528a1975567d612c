"""Matrix products with weights that are stored in 8 or 4 bits.

``int8``: one float32 scale per output channel. ``int4``: one scale, and optionally one zero point, per group
of consecutive input channels of an output channel.
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch

from ._ops import add_op_namespace_prefix, ops

__all__ = ["PackedWeight", "dequantize", "matmul", "quantize"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight matrix: element (n, k) stands for ``(weight[n, k] - zero) * scale``.

    Attributes:
        shape: ``(N, K)``, output and input channels.
        format: ``"int8"`` or ``"int4"``.
        group_size: input channels that share a scale; K for int8.
        weight: int8 ``[N, K]``, or uint8 ``[N, ceil(K / 2)]`` with the even k in the low four bits.
        scales: float32 ``[N]`` for int8; ``[N, K / group_size]`` in the dtype of the original weight for
            int4.
        zeros: uint8 ``[N, K / group_size]``, 0 to 15; None for a symmetric format, whose zero point is 0 for
            int8 and 8 for int4.
    """

    shape: tuple[int, int]
    format: str
    group_size: int
    weight: torch.Tensor
    scales: torch.Tensor
    zeros: Optional[torch.Tensor] = None


def quantize(
    weight: torch.Tensor, format: str, group_size: int = 128, symmetric: bool = True
) -> PackedWeight:
    """Rounds a weight matrix to the nearest values of a format.

    Args:
        weight: ``[N, K]``, float32, float16 or bfloat16, as in ``torch.nn.Linear``.
        format: ``"int8"`` (symmetric, one scale per row; group_size is not used) or ``"int4"``.
        group_size: for int4: 32, 64, 128, or K for one group per row. It must divide K.
        symmetric: for int4: without zero points. Asymmetric groups fit weights that are not centred on 0.

    Raises:
        ValueError: a shape, dtype, format or group size that is not one of these, or a weight that is not
            finite.
    """
    if weight.dim() != 2 or weight.shape[1] == 0:
        raise ValueError(f"weight must be [N, K] with K of at least 1, got shape {tuple(weight.shape)}")
    if weight.dtype not in _DTYPES:
        raise ValueError(f"weight must be float32, float16 or bfloat16, got {weight.dtype}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight has values that are not finite, which no scale can hold")
    shape = (weight.shape[0], weight.shape[1])
    if format == "int8":
        if not symmetric:
            raise ValueError("int8 is symmetric; asymmetric groups need format int4")
        return _quantize_int8(weight, shape)
    if format != "int4":
        raise ValueError(f'format must be "int8" or "int4", got "{format}"')
    if group_size not in (32, 64, 128, shape[1]):
        raise ValueError(f"group_size must be 32, 64, 128 or K={shape[1]}, got {group_size}")
    if shape[1] % group_size:
        raise ValueError(
            f"K={shape[1]} is not divisible by group_size={group_size}; "
            f"use a smaller group or group_size={shape[1]}"
        )
    return _quantize_int4(weight, shape, group_size, symmetric)


def matmul(
    x: torch.Tensor,
    packed: PackedWeight,
    bias: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    int8_activations: bool = False,
) -> torch.Tensor:
    """``x @ dequantize(packed).T + bias``, without ever storing the dequantized weights.

    Args:
        x: ``[..., K]``, float32, float16 or bfloat16.
        packed: the weight, on the device of x.
        bias: ``[N]``, of the dtype of x.
        out: where to write, ``[..., N]``, contiguous, of the dtype of x; a new tensor without it.
        int8_activations: allow x to be rounded to 8 bits, with a scale for each row and group of up to 128
            channels, as W4A8 schemes and llama.cpp do. A CPU multiplies int4 faster for it; where nothing is
            gained nothing is rounded.

    Returns:
        ``[..., N]``, rounded once: products and sums in float32 on a GPU, of x in fixed point on a CPU (see the
        README's numerics), where a row of x with a value that is not finite gives NaN.

    Raises:
        ValueError: x or out of another shape than the weight asks for, or an out that is not contiguous.
        RuntimeError: a tensor of the wrong dtype or device, or a bias of the wrong shape.
    """
    rows, columns = packed.shape
    if x.dim() == 0 or x.shape[-1] != columns:
        raise ValueError(
            f"x must be [..., {columns}] for a weight of shape {packed.shape}, got {tuple(x.shape)}"
        )
    result_shape = (*x.shape[:-1], rows)
    if out is None:
        out = x.new_empty(result_shape)
    elif out.shape != result_shape or not out.is_contiguous():
        raise ValueError(f"out must be contiguous and of shape {tuple(result_shape)}, got {tuple(out.shape)}")
    x_rows, out_rows = x, out
    if x.dim() != 2:
        count = math.prod(x.shape[:-1])
        x_rows, out_rows = x.reshape(count, columns), out.view(count, rows)
    if x_rows.stride(1) != 1:
        x_rows = x_rows.contiguous()
    if packed.format == "int8":
        ops.int8_matmul(out_rows, x_rows, packed.weight, packed.scales, bias)
    else:
        ops.int4_matmul(
            out_rows,
            x_rows,
            packed.weight,
            packed.scales,
            packed.zeros,
            bias,
            packed.group_size,
            int8_activations,
        )
    return out


def dequantize(packed: PackedWeight) -> torch.Tensor:
    """The weights that ``packed`` stands for, float32 ``[N, K]``."""
    rows, columns = packed.shape
    if packed.format == "int8":
        return packed.weight.float() * packed.scales[:, None]
    nibbles = torch.stack([packed.weight & 15, packed.weight >> 4], dim=-1).flatten(1)[:, :columns]
    groups = nibbles.reshape(rows, columns // packed.group_size, packed.group_size).float()
    zeros = 8.0 if packed.zeros is None else packed.zeros.float()[..., None]
    return ((groups - zeros) * packed.scales.float()[..., None]).reshape(rows, columns)


def _quantize_int8(weight: torch.Tensor, shape: tuple[int, int]) -> PackedWeight:
    wide = weight.float()
    scales = _nonzero(wide.abs().amax(dim=1) / 127)
    values = torch.round(wide / scales[:, None]).clamp(-127, 127).to(torch.int8)
    return PackedWeight(shape, "int8", shape[1], values, scales)


def _quantize_int4(
    weight: torch.Tensor, shape: tuple[int, int], group_size: int, symmetric: bool
) -> PackedWeight:
    groups = weight.float().reshape(shape[0], shape[1] // group_size, group_size)
    # A scale is rounded to the dtype it is kept in before anything is divided by it.
    if symmetric:
        scales = _nonzero((groups.abs().amax(dim=2) / 7).to(weight.dtype))
        zeros, zero_points = None, torch.full_like(scales, 8.0, dtype=torch.float32)
    else:
        low, high = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
        scales = _nonzero(((high - low) / 15).to(weight.dtype))
        zero_points = torch.round(-low / scales.float()).clamp(0, 15)
        zeros = zero_points.to(torch.uint8)
    values = torch.round(groups / scales.float()[..., None]) + zero_points[..., None]
    nibbles = values.clamp(0, 15).to(torch.uint8).reshape(shape)
    if shape[1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    packed = (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).contiguous()
    return PackedWeight(shape, "int4", group_size, packed, scales, zeros)


def _nonzero(scales: torch.Tensor) -> torch.Tensor:
    """A group of zeros keeps its zeros with any scale, but 0 would divide by zero."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _register_fakes() -> None:
    """The ops return nothing and allocate nothing, so tracing them is to do nothing."""
    for op in ("int8_matmul", "int4_matmul"):
        torch.library.register_fake(add_op_namespace_prefix(op))(lambda *args: None)


_register_fakes()
