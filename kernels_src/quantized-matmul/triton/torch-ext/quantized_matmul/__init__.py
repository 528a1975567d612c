"""The package in Triton, with the functions of the compiled variants."""

from . import _operators  # noqa: F401  registers what the functions call
from ._face import (
    FORMATS,
    PackedWeight,
    dequantize,
    from_awq,
    from_gguf,
    from_gptq,
    from_rows_of_32,
    gemm_int4_forward,
    matmul,
    prepack,
    quantize,
)

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
