"""Matrix products with weights that are stored in 8 bits or less.

``int8``: one float32 scale per output channel. ``int4``: one scale, and optionally one zero point, per group
of consecutive input channels of an output channel. ``fp8``: one scale per output channel or block of 128 x 128.
``gguf``: blocks as GGUF files have them.
"""

import math
from typing import Optional

import torch

from ._ops import add_op_namespace_prefix, ops
from .checkpoints import from_awq, from_gptq, from_rows_of_32
from .fp8 import BLOCK, dequantize_fp8, quantize_fp8
from .gguf import KINDS, dequantize_blocks, from_gguf
from .packed import PackedWeight
from .panels import from_panels, to_panels

__all__ = [
    "FORMATS",
    "PackedWeight",
    "dequantize",
    "from_awq",
    "from_gguf",
    "from_gptq",
    "from_rows_of_32",
    "gemm_int4_forward",
    "matmul",
    "prepack",
    "quantize",
]

FORMATS = ("int8", "int4", "fp8", "gguf")
"""What ``matmul`` multiplies, of the formats of a PackedWeight."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def quantize(
    weight: torch.Tensor, format: str, group_size: Optional[int] = None, symmetric: bool = True
) -> PackedWeight:
    """Rounds a weight matrix to the nearest values of a format.

    Args:
        weight: ``[N, K]``, float32, float16 or bfloat16, as in ``torch.nn.Linear``.
        format: ``"int8"`` (symmetric, one scale per row; group_size is not used), ``"int4"`` or ``"fp8"``.
        group_size: for int4: 32, 64, 128 (as without it), or K for one group per row. It must divide K. For fp8: 128
            for a scale per block of 128 x 128, K or nothing for one per row.
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
    if format == "fp8":
        if group_size not in (None, BLOCK, shape[1]):
            raise ValueError(f"group_size must be {BLOCK} or K={shape[1]} for fp8, got {group_size}")
        if not symmetric:
            raise ValueError("fp8 is symmetric; asymmetric groups need format int4")
        return quantize_fp8(weight, blocks=group_size == BLOCK)
    if format != "int4":
        raise ValueError(f'format must be "int8", "int4" or "fp8", got "{format}"')
    if group_size is None:
        group_size = 128
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
    fp8_activations: bool = False,
) -> torch.Tensor:
    """``x @ dequantize(packed).T + bias``, without ever storing the dequantized weights.

    Args:
        x: ``[..., K]``, float32, float16 or bfloat16.
        packed: the weight, on the device of x.
        bias: ``[N]``, of the dtype of x.
        out: where to write, ``[..., N]``, contiguous, of the dtype of x; a new tensor without it.
        int8_activations: for int4 and int8: allow x to be rounded to 8 bits, with a scale for each row and group of
            up to 128 channels, as W4A8 schemes and llama.cpp do, or with one for each row, as SmoothQuant does. Where
            nothing is gained nothing is rounded.
        fp8_activations: for fp8: allow x to be rounded to e4m3, with a scale for each row or, where scales are by
            block, each row and 128 channels.

    Returns:
        ``[..., N]``, rounded once: products and sums in float32 on a GPU and of gguf, of x in fixed point on a CPU
        (see the README's numerics), where a row of x with a value that is not finite gives NaN.

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
    if packed.permutation is not None:
        x_rows = x_rows.index_select(1, packed.permutation)
    if packed.format == "int8":
        ops.int8_matmul(out_rows, x_rows, packed.weight, packed.scales, bias, int8_activations)
    elif packed.format == "fp8":
        ops.fp8_matmul(out_rows, x_rows, packed.weight, packed.scales, bias, fp8_activations)
    elif packed.format == "gguf":
        ops.gguf_matmul(out_rows, x_rows, packed.weight, bias, KINDS[packed.kind].number)
    else:
        int4_matmul = ops.int4_panels_matmul if packed.panels else ops.int4_matmul
        int4_matmul(
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


def prepack(packed: PackedWeight) -> PackedWeight:
    """The same weight in the order in which this processor multiplies it fastest; ``matmul`` gives the same bits.

    It is a copy, to be made once where a weight is multiplied often: of int4 on a CPU with AVX2, with K a multiple of
    64. What has nothing to gain is returned as it is.
    """
    gains = packed.format == "int4" and packed.weight.device.type == "cpu" and not packed.panels
    if not gains or not hasattr(ops, "int4_panels_matmul") or packed.shape[1] % 64:
        return packed
    if packed.group_size % 32 or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return packed
    return to_panels(packed)


def gemm_int4_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    zeros: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
) -> torch.Tensor:
    """The function of the Hub's quantization-gptq: ``[M, K]`` times a weight in rows of 32, ``[M, N]``.

    It repacks the weight in every call, for nothing tells whether a tensor still holds what it held. Where one weight
    is used again, ``matmul`` with what ``from_rows_of_32`` returns has the same result for a fraction of the time.

    Args:
        input: ``[M, K]``, float32, float16 or bfloat16; it is not rounded to bfloat16.
        weight: uint8 ``[N, K / 2]``, N a multiple of 32.
        zeros: uint8 ``[K / blocksize, N]``, 0 to 15.
        absmax: the scales, float16, bfloat16 or float32 ``[K / blocksize, N]``.
        blocksize: input channels that share a scale: 32, 64, 128, 256, 512 or K.

    Raises:
        ValueError: a shape, dtype or block size that is not one of these.
    """
    return matmul(input, from_rows_of_32(weight, zeros, absmax, blocksize))


def dequantize(packed: PackedWeight) -> torch.Tensor:
    """The weights that ``packed`` stands for, float32 ``[N, K]``, a column for each of x."""
    weight = _dequantize(packed)
    return weight if packed.permutation is None else weight[:, packed.permutation.argsort()]


def _dequantize(packed: PackedWeight) -> torch.Tensor:
    rows, columns = packed.shape
    if packed.format == "int8":
        return packed.weight.float() * packed.scales[:, None]
    if packed.format == "fp8":
        return dequantize_fp8(packed)
    if packed.format == "gguf":
        return dequantize_blocks(packed)
    if packed.panels:
        packed = from_panels(packed)
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
    for op in ("int8_matmul", "int4_matmul", "int4_panels_matmul", "fp8_matmul", "gguf_matmul"):
        if hasattr(ops, op):
            torch.library.register_fake(add_op_namespace_prefix(op))(lambda *args: None)


_register_fakes()
