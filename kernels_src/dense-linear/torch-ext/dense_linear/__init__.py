"""Linear layers on the CPU: what decoding a batch of sequences, and reading its prompts, is made of.

Weights stay as they are, in float32, float16 or bfloat16, and are read once for up to 64 rows of x.
"""

import math
from typing import Optional

import torch
from torch.nn import functional

from ._ops import add_op_namespace_prefix, ops

__all__ = ["linear"]

# From here on a blocked matrix product reuses what it copies often enough to be faster: this package's own where the
# processor has AVX2 and no more. Where it has wider vectors, or is no x86-64, torch's.
_MANY_ROWS = 64
_MULTIPLIES_BLOCKS = torch.backends.cpu.get_cpu_capability() == "AVX2"
# Weight rows that are widened at a time: they stay in the last cache.
_WIDENED_ROWS = 2048


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """``x @ weight.T + bias``, products and sums in float32, rounded once.

    Args:
        x: ``[..., K]``, float32, float16 or bfloat16.
        weight: ``[N, K]`` of the dtype of x, contiguous rows.
        bias: ``[N]`` of the dtype of x.
        out: where to write, ``[..., N]``, contiguous, of the dtype of x, which it may be; a new tensor without it.

    Returns:
        ``[..., N]``. With fewer than 64 rows, a row's result does not depend on the others.

    Raises:
        ValueError: shapes that do not fit, or an out that is not contiguous.
        RuntimeError: a tensor of the wrong dtype or device, or a bias of the wrong shape.
    """
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must be [..., K] and weight [N, K], got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    result_shape = (*x.shape[:-1], weight.shape[0])
    if out is None:
        out = x.new_empty(result_shape)
    elif out.shape != result_shape or not out.is_contiguous():
        raise ValueError(f"out must be contiguous and of shape {tuple(result_shape)}, got {tuple(out.shape)}")
    rows = math.prod(x.shape[:-1])
    x_rows, out_rows = x.reshape(rows, x.shape[-1]), out.view(rows, weight.shape[0])
    if rows < _MANY_ROWS or _MULTIPLIES_BLOCKS:
        ops.linear(out_rows, x_rows if x_rows.stride(1) == 1 else x_rows.contiguous(), weight, bias)
    elif x.dtype == torch.float32 or _MULTIPLIES_NARROW.get(x.dtype):
        out_rows.copy_(functional.linear(x_rows, weight, bias))
    else:
        _widen_and_multiply(out_rows, x_rows, weight, bias)
    return out


def _widen_and_multiply(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]
) -> None:
    """A product in float32, the weights widened a stretch at a time."""
    wide = x.float()
    for begin in range(0, weight.shape[0], _WIDENED_ROWS):
        end = begin + _WIDENED_ROWS
        part = bias[begin:end].float() if bias is not None else None
        out[:, begin:end] = functional.linear(wide, weight[begin:end].float(), part)


def _supports(name: str) -> bool:
    return hasattr(torch.ops.mkldnn, name) and bool(getattr(torch.ops.mkldnn, name)())


# Whether torch has a matrix product of a dtype for this processor; otherwise it has loops. Asked once, here, because
# torch.compile cannot trace the question.
_MULTIPLIES_NARROW = {
    torch.bfloat16: _supports("_is_mkldnn_bf16_supported"),
    torch.float16: _supports("_is_mkldnn_fp16_supported"),
}

torch.library.register_fake(add_op_namespace_prefix("linear"))(lambda *args: None)
