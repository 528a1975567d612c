"""Layers whose forward can stand in for a model's own: no state, no helpers, the names a model has.

``RMSNorm`` reads ``weight`` and ``variance_epsilon`` of the layer it stands in for, as those of transformers
have them; the others read nothing.
"""

import torch
from torch import nn

from . import functional
from ._ops import ops

__all__ = [
    "FastGELU",
    "FatreluAndMul",
    "Gelu",
    "GeluAndMul",
    "GeluTanh",
    "GeluTanhAndMul",
    "LlamaRMSNorm",
    "MulAndSilu",
    "NewGELU",
    "QuickGELU",
    "RMSNorm",
    "Silu",
    "SiluAndMul",
    "apply_rotary_transformers",
]


class RMSNorm(nn.Module):
    """``hidden_states * rsqrt(mean(hidden_states ** 2, -1) + variance_epsilon) * weight``."""

    can_torch_compile = True
    has_backward = True

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return functional.apply_rms_norm(hidden_states, self.weight, self.variance_epsilon)


class LlamaRMSNorm(RMSNorm):
    """RMSNorm under the name that mappings of Llama have for it."""


class SiluAndMul(nn.Module):
    """``silu(x[..., :size]) * x[..., size:]``."""

    can_torch_compile = True
    has_backward = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.apply_silu_and_mul(x)


class MulAndSilu(nn.Module):
    """``x[..., :size] * silu(x[..., size:])``; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate_half(ops.mul_and_silu, x)


class GeluAndMul(nn.Module):
    """``gelu(x[..., :size]) * x[..., size:]``; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate_half(ops.gelu_and_mul, x)


class GeluTanhAndMul(nn.Module):
    """``gelu_tanh(x[..., :size]) * x[..., size:]``; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate_half(ops.gelu_tanh_and_mul, x)


class Silu(nn.Module):
    """``x * sigmoid(x)``; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate(ops.silu, x)


class Gelu(nn.Module):
    """``x * Phi(x)``; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate(ops.gelu, x)


class GeluTanh(nn.Module):
    """``gelu`` by its approximation with tanh; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate(ops.gelu_tanh, x)


class FastGELU(nn.Module):
    """``GeluTanh`` under another name; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate(ops.gelu_fast, x)


class NewGELU(nn.Module):
    """``GeluTanh`` under another name; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate(ops.gelu_new, x)


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 * x)``; for inference."""

    can_torch_compile = True
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate(ops.gelu_quick, x)


class FatreluAndMul(nn.Module):
    """``x[..., :size] * x[..., size:]`` where the first is above the threshold, else 0; for inference."""

    can_torch_compile = True
    has_backward = False

    threshold: float

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.activate_half(ops.fatrelu_and_mul, x, self.threshold)


class apply_rotary_transformers(nn.Module):  # noqa: N801  # a function, in the form that mappings take
    """transformers' ``apply_rotary_pos_emb``."""

    can_torch_compile = True
    has_backward = True

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return functional.apply_rotary_transformers(q, k, cos, sin, unsqueeze_dim)
