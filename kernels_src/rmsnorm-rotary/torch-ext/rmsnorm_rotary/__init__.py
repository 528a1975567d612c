"""RMSNorm, rotary position embedding and activations: the row-wise steps of a transformer layer.

float32, float16 and bfloat16; computed in float32 and rounded once when written. Rows must be contiguous in
the last dimension and evenly spaced, so most views need no copy.
"""

from typing import Optional

import torch

from . import layers
from ._ops import add_op_namespace_prefix, ops
from .activations import (
    ACTIVATIONS,
    fatrelu_and_mul,
    gelu,
    gelu_and_mul,
    gelu_fast,
    gelu_new,
    gelu_quick,
    gelu_tanh,
    gelu_tanh_and_mul,
    mul_and_silu,
    silu,
    silu_and_mul,
)
from .functional import apply_rms_norm, apply_rotary_transformers, apply_silu_and_mul
from .mrope import mrope_cos_sin

__all__ = [
    "apply_rms_norm",
    "apply_rotary",
    "apply_rotary_transformers",
    "apply_silu_and_mul",
    "fatrelu_and_mul",
    "fused_add_rms_norm",
    "gelu",
    "gelu_and_mul",
    "gelu_fast",
    "gelu_new",
    "gelu_quick",
    "gelu_tanh",
    "gelu_tanh_and_mul",
    "layers",
    "mrope_cos_sin",
    "mul_and_silu",
    "qk_norm_rope_cache",
    "rms_norm",
    "rotary_embedding",
    "silu",
    "silu_and_mul",
]


def rms_norm(out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> None:
    """``out = input * rsqrt(mean(input ** 2, -1) + epsilon) * weight`` (Zhang and Sennrich, 2019).

    Args:
        out, input: ``[..., hidden_size]``, the same shape and dtype; ``out`` may be ``input``.
        weight: ``[hidden_size]``, of the same dtype.
        epsilon: added to the mean of squares.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.rms_norm(out, input, weight, epsilon)


def fused_add_rms_norm(
    input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> None:
    """``residual += input``, then ``input = rms_norm(residual)``, in place and in one pass.

    The sum is normalised as float32; it is rounded to the dtype only where ``residual`` is written.

    Args:
        input, residual: ``[..., hidden_size]``, the same shape and dtype.
        weight: ``[hidden_size]``, of the same dtype.
        epsilon: added to the mean of squares.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride.
    """
    ops.fused_add_rms_norm(input, residual, weight, epsilon)


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: Optional[torch.Tensor],
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
) -> None:
    """Rotates each head of ``query`` and ``key`` by its token's position, in place.

    Rotary position embedding is from RoFormer (Su et al., 2021).

    Args:
        positions: int64 ``[num_tokens]`` or ``[batch, seq_len]``. Of several for each token see ``mrope_cos_sin``.
        query, key: the dimensions of ``positions``, then ``[heads * head_size]`` or ``[heads, head_size]``.
            ``key`` may have another number of heads, or be None.
        head_size: elements per head.
        cos_sin_cache: ``[max_position, rotary_dim]``, cosines then sines, in any of the three dtypes. With a
            rotary_dim below head_size the rest of each head is left alone.
        is_neox: the pairs that are rotated together are (i, i + rotary_dim / 2); otherwise, as in GPT-J,
            (2i, 2i + 1).

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride; on the CPU also a position out of
            range.
    """
    ops.rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)


def apply_rotary(
    x1: torch.Tensor,
    x2: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out1: torch.Tensor,
    out2: torch.Tensor,
    conj: bool,
) -> None:
    """``out1 = x1 * cos - x2 * sin`` and ``out2 = x1 * sin + x2 * cos``, as flash-attention's layers call it.

    Args:
        x1, x2: the elements of a pair, of the same shape of 1 to 4 dimensions and with any strides: halves of a head,
            or every other element.
        cos, sin: of the same dtype, broadcast to the shape of x1, for instance ``[seq_len, 1, rotary_dim / 2]``.
        out1, out2: of the shape of x1; each may be the input of its number.
        conj: rotate by the angle's negative, as a backward pass does.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype or device.
    """
    ops.apply_rotary(x1, x2, cos, sin, out1, out2, conj)


def qk_norm_rope_cache(
    qkv: torch.Tensor,
    q_weight: Optional[torch.Tensor],
    k_weight: Optional[torch.Tensor],
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
    is_neox: bool = True,
    epsilon: float = 1e-6,
) -> None:
    """From a projection to attention in one pass: normalises and rotates heads, writes keys and values to the cache.

    Each head of query and key is normalised as by ``rms_norm`` and rotated as by ``rotary_embedding``, in float32
    and rounded once. Queries stay in ``qkv``; keys and values there are left as they were.

    Args:
        qkv: ``[num_tokens, (num_heads + 2 * kv_heads) * head_size]``: query, key and value side by side.
        q_weight, k_weight: ``[head_size]``, of the dtype of qkv, as in Qwen3; None: not normalised.
        positions: int64 ``[num_tokens]``.
        cos_sin_cache: ``[max_position, rotary_dim]``, cosines then sines, in any of the three dtypes. With a
            rotary_dim below head_size the rest of each head is not rotated.
        key_cache, value_cache: ``[num_blocks, block_size, kv_heads, head_size]``, of the dtype of qkv.
        slot_mapping: int64, for each token ``block * block_size`` and its place in the block; below 0 a token is not
            written. Of fewer tokens the rest is not written.
        num_heads: of the query.
        is_neox: see ``rotary_embedding``.
        epsilon: added to the mean of squares.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype, device or stride; on the CPU also a position or slot out of
            range.
    """
    ops.qk_norm_rope_cache(
        qkv,
        q_weight,
        k_weight,
        positions,
        cos_sin_cache,
        key_cache,
        value_cache,
        slot_mapping,
        num_heads,
        is_neox,
        epsilon,
    )


def _register_fakes() -> None:
    """The ops return nothing and allocate nothing, so tracing them is to do nothing."""
    for op in (
        "rms_norm",
        "fused_add_rms_norm",
        "apply_rotary",
        "rotary_embedding",
        "rotate_halves",
        "qk_norm_rope_cache",
        *ACTIVATIONS,
    ):
        torch.library.register_fake(add_op_namespace_prefix(op))(lambda *args: None)


_register_fakes()
