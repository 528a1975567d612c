"""A Hugging Face folder as the one GGUF file that llama.cpp reads; dense Qwen3 and Llama models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hub_loader.errors import MissingExtraError, UsageError

from ..config import read_json
from ..weights import Weights
from .shapes import tensor_shapes

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KINDS = {"float32": "F32", "bfloat16": "BF16", "int4": "Q4_0", "w4a8": "Q4_0", "int8": "Q8_0"}


def write_gguf(model: Path, file: Path, kind: str) -> None:
    """Write the matrices as `kind`, a key of KINDS; norms stay in float32.

    Raises:
        UsageError: an architecture or kind that is not written here.
        MissingExtraError: the package gguf is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise MissingExtraError(
            "--peer llama.cpp needs gguf to write its model: pip install 'kernel-hub[bench]'"
        ) from None
    config = read_json(model / "config.json")
    architecture = {"qwen3": "qwen3", "llama": "llama"}.get(str(config.get("model_type")))
    if (
        architecture is None
        or kind not in KINDS
        or config.get("rope_scaling")
        or config.get("attention_bias")
    ):
        raise UsageError(
            f"--peer llama.cpp: {model} as {kind} cannot be written as GGUF: dense Qwen3 and Llama models in "
            f"{', '.join(KINDS)} can"
        )
    writer = gguf.GGUFWriter(file, architecture)
    _write_settings(writer, config, gguf)
    stored = gguf.GGMLQuantizationType[KINDS[kind]]
    weights = Weights(model)
    for name, shape in tensor_shapes(config).items():
        tensor = weights.get(name, shape).to(torch.float32)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = _interleave(tensor, config, "q_proj" in name)
        values = tensor.numpy()
        if tensor.ndim == 1 or kind == "float32":
            writer.add_tensor(_name(name), values)
        else:
            writer.add_tensor(_name(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_settings(writer: Any, config: dict[str, Any], gguf: Any) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    # Prompts are given as ids: the words need only be there.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"w{i}" for i in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["w 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _name(name: str) -> str:
    """A tensor's name in GGUF: model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    index, _, inside = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{index}.{_INSIDE[inside]}.weight"


def _interleave(weight: torch.Tensor, config: dict[str, Any], query: bool) -> torch.Tensor:
    """Llama's heads as GGUF has them: the two halves that are rotated together take turns."""
    heads = config["num_attention_heads"]
    if not query:
        heads = config.get("num_key_value_heads") or heads
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
