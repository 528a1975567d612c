"""Layers whose forward can stand in for a model's own: no state, no helpers, the names a model has.

``RMSNorm`` reads ``weight`` and ``variance_epsilon`` of the layer it stands in for, as those of transformers
have them; the others read nothing.
"""

import torch
from torch import nn

from . import functional

__all__ = ["LlamaRMSNorm", "RMSNorm", "SiluAndMul", "apply_rotary_transformers"]


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


class apply_rotary_transformers(nn.Module):  # noqa: N801  # a function, in the form that mappings take
    """transformers' ``apply_rotary_pos_emb``."""

    can_torch_compile = True
    has_backward = True

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return functional.apply_rotary_transformers(q, k, cos, sin, unsqueeze_dim)
