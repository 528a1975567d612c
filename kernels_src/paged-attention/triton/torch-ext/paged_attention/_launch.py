"""What operators written in Triton share: registration, checks of tensors, tuned configurations, the device."""

import inspect
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable

import torch
import triton
import triton.language as tl

from ._ops import add_op_namespace_prefix

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs kernels on the CPU: to debug them, and to test them without a GPU."""

_NAMES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.float8_e4m3fn: "Float8_e4m3fn",
    torch.float8_e5m2: "Float8_e5m2",
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b):
    """The product, a rounded to the dtype of b, on tensor cores with float32 sums; float32 is not cut to TF32."""
    if _INTERPRETED:  # the interpreter holds bfloat16 as integers and would multiply those
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a.to(b.dtype), b, input_precision="ieee")


def register(name: str, schema: str, function: Callable[..., None]) -> None:
    """Makes ``function`` the operator ``name`` of this build, on GPUs (interpreted, on the CPU too)."""
    full_name = add_op_namespace_prefix(name)
    torch.library.define(full_name, schema)
    torch.library.impl(full_name, ("cuda", "cpu") if INTERPRETED else "cuda", function)


def tuned(configs: Sequence[triton.Config], key: Sequence[str], **options: Any) -> Callable[[Any], Any]:
    """``triton.autotune``; what was chosen is kept on disk, in Triton's cache, by releases that can.

    Interpreted kernels take the first configuration: their times mean nothing.
    """
    if "cache_results" in inspect.signature(triton.autotune).parameters:
        options["cache_results"] = True
    return triton.autotune(list(configs[:1] if INTERPRETED else configs), list(key), **options)


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def check(condition: bool, message: str) -> None:
    """Raises RuntimeError, as operators in C++ do."""
    if not condition:
        raise RuntimeError(message)


def name_of(dtype: torch.dtype) -> str:
    return _NAMES.get(dtype, str(dtype))


def check_float(tensor: torch.Tensor, name: str) -> None:
    check(
        tensor.dtype in _FLOATS,
        f"{name} must be float32, float16 or bfloat16, got {name_of(tensor.dtype)}",
    )


def check_like(tensor: torch.Tensor, name: str, reference: torch.Tensor, dtype: torch.dtype) -> None:
    check(tensor.device == reference.device, f"{name} must be on the device of the first argument")
    check(tensor.dtype == dtype, f"{name} must be {name_of(dtype)}, got {name_of(tensor.dtype)}")


def check_dims(tensor: torch.Tensor, name: str, dims: int) -> None:
    check(tensor.dim() == dims, f"{name} must have {dims} dimensions, got {tensor.dim()}")


def check_size(tensor: torch.Tensor, name: str, dim: int, size: int) -> None:
    found = tensor.shape[dim]
    check(found == size, f"{name} must have size {size} in dimension {dim}, got {found}")


def check_inner_stride(tensor: torch.Tensor, name: str) -> None:
    check(
        tensor.shape[-1] <= 1 or tensor.stride(-1) == 1,
        f"{name} must be contiguous in its last dimension, got stride {tensor.stride(-1)}",
    )


def row_stride(tensor: torch.Tensor, name: str, dims: int) -> int:
    """The distance between consecutive rows when the first ``dims`` dimensions are read as one."""
    stride, expected = 0, -1
    for i in reversed(range(dims)):
        if tensor.shape[i] == 1:
            continue
        if expected < 0:
            stride = expected = tensor.stride(i)
        check(
            tensor.numel() == 0 or tensor.stride(i) == expected,
            f"{name} must have evenly spaced rows, got stride {tensor.stride(i)} instead of {expected} in "
            f"dimension {i}; make it contiguous",
        )
        expected *= tensor.shape[i]
    return stride
