"""The row-wise steps as functions that return new tensors and that autograd and torch.compile see through.

Forward passes run the kernels; backward passes of the norm and the gate are torch's own operations, that of the
rotation is the kernel once more, by the negative angle.
"""

from collections.abc import Callable
from typing import Any

import torch

from ._ops import ops


def apply_rms_norm(input: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``input * rsqrt(mean(input ** 2, -1) + eps) * weight``, differentiable.

    Args:
        input: ``[..., hidden_size]``; what is not contiguous is copied.
        weight: ``[hidden_size]``. Of two dtypes the wider one is computed in and returned, as torch promotes.
        eps: added to the mean of squares.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype or device.
    """
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(input, weight, eps)
    return _rms_norm(input, weight, eps)


def apply_silu_and_mul(input: torch.Tensor) -> torch.Tensor:
    """``silu(input[..., :size]) * input[..., size:]``, differentiable.

    Args:
        input: ``[..., 2 * size]``; what is not contiguous is copied.

    Raises:
        RuntimeError: a tensor of the wrong shape or dtype.
    """
    if torch.is_grad_enabled() and input.requires_grad:
        return _SiluAndMul.apply(input)
    return activate_half(ops.silu_and_mul, input)


def apply_rotary_transformers(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding with the arguments of transformers' ``apply_rotary_pos_emb``, differentiable
    in ``q`` and ``k``.

    Args:
        q, k: ``[batch, heads, seq_len, head_size]``, or with an ``unsqueeze_dim`` of 2
            ``[batch, seq_len, heads, head_size]``. ``k`` may have another number of heads.
        cos, sin: ``[batch or 1, seq_len, head_size]`` whose second half repeats the first, as models of that
            library make them. Not differentiated.
        unsqueeze_dim: the dimension of ``q`` that ``cos`` lacks, the heads.

    Returns:
        The rotated query and key, new tensors of the shape and dtype of ``q`` and ``k``.

    Raises:
        RuntimeError: a tensor of the wrong shape, dtype or device.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return _Rotary.apply(q, k, cos, sin, unsqueeze_dim)
    return _rotate(q, k, cos, sin, unsqueeze_dim)


def activate(op: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    """``op`` of each element of ``x``, which is copied if it is not contiguous; not differentiable."""
    x = x.contiguous()
    out = torch.empty_like(x)
    op(out, x)
    return out


def activate_half(op: Callable[..., Any], x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """``[..., 2 * size]`` to ``[..., size]``: ``op`` of one half of each row times the other; not differentiable."""
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    op(out, x, *arguments)
    return out


def _rms_norm(input: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    dtype = torch.promote_types(input.dtype, weight.dtype)
    input = input.to(dtype).contiguous()
    out = torch.empty_like(input)
    ops.rms_norm(out, input, weight.to(dtype), eps)
    return out


def _rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # For one token the time is that of calling torch, so one call rotates both.
    out_q, out_k, rotated = torch.empty_like(q), torch.empty_like(k), cos.shape[-1]
    ops.rotate_halves(q, k, cos.to(q.dtype), sin.to(q.dtype), out_q, out_k, unsqueeze_dim)
    for x, out in ((q, out_q), (k, out_k)):
        if rotated < x.shape[-1]:
            out[..., rotated:] = x[..., rotated:]
    return out_q, out_k


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        ctx.eps = eps
        return _rms_norm(input, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        input, weight = ctx.saved_tensors
        wide, grad = input.float(), grad.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + ctx.eps)
        normed, weighted = wide * scale, grad * weight.float()
        grad_input = scale * (weighted - normed * (weighted * normed).mean(-1, keepdim=True))
        grad_weight = (grad * normed).reshape(-1, weight.shape[0]).sum(0)
        return grad_input.to(input.dtype), grad_weight.to(weight.dtype), None


class _SiluAndMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(input)
        return activate_half(ops.silu_and_mul, input)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (input,) = ctx.saved_tensors
        gate, up = input.float().chunk(2, dim=-1)
        grad, open = grad.float(), torch.sigmoid(gate)
        grad_gate = grad * up * open * (1 + gate * (1 - open))
        return torch.cat((grad_gate, grad * gate * open), dim=-1).to(input.dtype)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.unsqueeze_dim = unsqueeze_dim
        return _rotate(q, k, cos, sin, unsqueeze_dim)

    @staticmethod
    def backward(
        ctx: Any, grad_q: torch.Tensor, grad_k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad_q, grad_k = apply_rotary_transformers(grad_q, grad_k, cos, -sin, ctx.unsqueeze_dim)
        return grad_q, grad_k, None, None, None
