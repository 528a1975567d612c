"""The package in Triton, with the functions of the compiled variants."""

from . import (
    _operators,  # noqa: F401  registers what the functions call
    layers,
)
from ._face import (
    apply_rms_norm,
    apply_rotary,
    apply_rotary_transformers,
    apply_silu_and_mul,
    fatrelu_and_mul,
    fused_add_rms_norm,
    gelu,
    gelu_and_mul,
    gelu_fast,
    gelu_new,
    gelu_quick,
    gelu_tanh,
    gelu_tanh_and_mul,
    mrope_cos_sin,
    mul_and_silu,
    qk_norm_rope_cache,
    rms_norm,
    rotary_embedding,
    silu,
    silu_and_mul,
)

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
