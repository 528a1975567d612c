"""What a quantized weight is made of."""

from dataclasses import dataclass
from typing import Optional

import torch

__all__ = ["PackedWeight"]


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight matrix: element (n, k) stands for ``(weight[n, k] - zero) * scale``.

    Attributes:
        shape: ``(N, K)``, output and input channels.
        format: ``"int8"``, ``"int4"``, ``"fp8"`` or ``"gguf"``.
        group_size: input channels that share a scale; K for int8; 128 or K for fp8.
        weight: int8 or, for fp8, float8_e4m3fn ``[N, K]``, or uint8 ``[N, ceil(K / 2)]`` with the even k in the low
            four bits, or for gguf uint8 ``[N, row_bytes]``, blocks of ``kind`` as a file has them.
        scales: float32 ``[N]`` for int8; ``[N, K / group_size]`` in the dtype of the original weight for
            int4; for fp8 float32 ``[N]`` or, by block of 128 x 128, ``[ceil(N / 128), ceil(K / 128)]``; None for
            gguf, whose blocks have their own.
        zeros: uint8 ``[N, K / group_size]``, 0 to 15; None for a symmetric format, whose zero point is 0 for
            int8 and 8 for int4.
        permutation: int32 or int64 ``[K]``: the weight's column k multiplies x's column ``permutation[k]``, where
            groups are of channels that are not consecutive (act-order of GPTQ); None: they are in x's order.
        kind: the type of gguf's blocks, such as ``"Q4_K"``; None for other formats.
        panels: the rows of an int4 weight lie in panels of eight, as ``prepack`` makes them (N rounded up): weight
            ``[N / 8, K / 8, 32]``, four bytes of each row in turn, scales and zeros ``[N / 8, K / group_size, 8]``.
    """

    shape: tuple[int, int]
    format: str
    group_size: int
    weight: torch.Tensor
    scales: Optional[torch.Tensor] = None
    zeros: Optional[torch.Tensor] = None
    permutation: Optional[torch.Tensor] = None
    kind: Optional[str] = None
    panels: bool = False
