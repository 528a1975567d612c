"""The activation functions, alone or as the gate of a product, with the names and arguments of the Hub's activation.

Computed in float32. What is multiplied is rounded to the dtype before, as torch rounds between two of its operators.
"""

import torch

from ._ops import ops

ACTIVATIONS = (
    "silu",
    "gelu",
    "gelu_tanh",
    "gelu_fast",
    "gelu_new",
    "gelu_quick",
    "silu_and_mul",
    "mul_and_silu",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "fatrelu_and_mul",
)


def silu(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = x * sigmoid(x)``.

    Args:
        out, x: of the same shape and dtype, rows contiguous in the last dimension; ``out`` may be ``x``.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.silu(out, x)
    return out


def gelu(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = x * Phi(x)``, the normal distribution exactly (Hendrycks and Gimpel, 2016).

    Args:
        out, x: of the same shape and dtype, rows contiguous in the last dimension; ``out`` may be ``x``.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.gelu(out, x)
    return out


def gelu_tanh(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``.

    Args:
        out, x: of the same shape and dtype, rows contiguous in the last dimension; ``out`` may be ``x``.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.gelu_tanh(out, x)
    return out


def gelu_fast(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The function of ``gelu_tanh``, under the name that GPT-J has for it.

    Args:
        out, x: of the same shape and dtype, rows contiguous in the last dimension; ``out`` may be ``x``.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.gelu_fast(out, x)
    return out


def gelu_new(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The function of ``gelu_tanh``, under the name that GPT-2 has for it.

    Args:
        out, x: of the same shape and dtype, rows contiguous in the last dimension; ``out`` may be ``x``.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.gelu_new(out, x)
    return out


def gelu_quick(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = x * sigmoid(1.702 * x)``.

    Args:
        out, x: of the same shape and dtype, rows contiguous in the last dimension; ``out`` may be ``x``.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.gelu_quick(out, x)
    return out


def silu_and_mul(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = silu(x[..., :size]) * x[..., size:]``, the gate of SwiGLU (Shazeer, 2020).

    Args:
        out: ``[..., size]``.
        x: ``[..., 2 * size]``, of the same dtype.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.silu_and_mul(out, x)
    return out


def mul_and_silu(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = x[..., :size] * silu(x[..., size:])``.

    Args:
        out: ``[..., size]``.
        x: ``[..., 2 * size]``, of the same dtype.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.mul_and_silu(out, x)
    return out


def gelu_and_mul(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = gelu(x[..., :size]) * x[..., size:]``.

    Args:
        out: ``[..., size]``.
        x: ``[..., 2 * size]``, of the same dtype.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.gelu_and_mul(out, x)
    return out


def gelu_tanh_and_mul(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``out = gelu_tanh(x[..., :size]) * x[..., size:]``.

    Args:
        out: ``[..., size]``.
        x: ``[..., 2 * size]``, of the same dtype.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.gelu_tanh_and_mul(out, x)
    return out


def fatrelu_and_mul(out: torch.Tensor, x: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """``out = x[..., :size] * x[..., size:]`` where the first is above ``threshold``, else 0.

    Args:
        out: ``[..., size]``.
        x: ``[..., 2 * size]``, of the same dtype.
        threshold: as float32.

    Returns:
        ``out``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.fatrelu_and_mul(out, x, threshold)
    return out
