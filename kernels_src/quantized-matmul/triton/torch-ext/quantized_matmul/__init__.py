"""The package in Triton, with the functions of the compiled variants."""

from . import _operators  # noqa: F401  registers what the functions call
from ._face import PackedWeight, dequantize, matmul, quantize

__all__ = ["PackedWeight", "dequantize", "matmul", "quantize"]
