"""What an architecture's name says and its config.json does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Family:
    """How a decoder differs from Llama's.

    qkv_bias, output_bias: whether the attention's projections have biases; None: as `attention_bias` says.
    qk_norm: queries and keys are normed by head. unit_offset: norms scale by 1 + weight. sandwich: what a
    layer's halves give is normed too. scaled_embedding: times the square root of the hidden size. tied: the
    output layer is the embedding unless config.json says otherwise. windows: which layers see a window only:
    "listed" by `layer_types`, "all", or every but the last of `pattern`. experts: how they are named.
    """

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    qk_norm: bool = False
    unit_offset: bool = False
    sandwich: bool = False
    scaled_embedding: bool = False
    tied: bool = False
    windows: Literal["none", "all", "listed"] = "none"
    pattern: int = 0
    experts: Literal["", "mixtral", "qwen"] = ""
    activation: str = "silu"


_GEMMA = Family(
    unit_offset=True,
    sandwich=True,
    scaled_embedding=True,
    tied=True,
    windows="listed",
    pattern=2,
    activation="gelu_pytorch_tanh",
)

FAMILIES = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(qkv_bias=False, output_bias=False, windows="all"),
    "Qwen2ForCausalLM": Family(qkv_bias=True, output_bias=False, windows="listed"),
    "Qwen3ForCausalLM": Family(qk_norm=True, windows="listed"),
    "Gemma2ForCausalLM": _GEMMA,
    "Gemma3ForCausalLM": replace(_GEMMA, qk_norm=True, pattern=6),
    "MixtralForCausalLM": Family(qkv_bias=False, output_bias=False, windows="all", experts="mixtral"),
    "Qwen3MoeForCausalLM": Family(qk_norm=True, windows="all", experts="qwen"),
}
