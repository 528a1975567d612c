"""Models of a known shape with random weights: speed does not depend on what the weights say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from hub_loader.errors import UsageError

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_bias": False,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _QWEN3
    | {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    # For trying a command out: seconds, on anything.
    "qwen3-tiny": _QWEN3
    | {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}


def write_model(folder: Path, shape: str, dtype: str, seed: int = 0) -> None:
    """Write a model folder in Hugging Face format: weights in `dtype`, a tokenizer whose words are the numbers.

    Raises:
        UsageError: an unknown shape.
    """
    if shape not in SHAPES:
        raise UsageError(f"--shape {shape!r}: expected one of {', '.join(SHAPES)}")
    config = SHAPES[shape] | {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    words = Tokenizer(models.WordLevel({str(i): i for i in range(config["vocab_size"])}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in tensor_shapes(config).items():
        # A norm's weights are near 1; the others spread so that logits are far enough apart to have an argmax.
        values = torch.empty(size).normal_(1.0 if len(size) == 1 else 0.0, 0.02, generator=generator)
        tensors[name] = values.to(getattr(torch, dtype))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a dense decoder's weights."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    vocabulary = (config["vocab_size"], hidden)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    tensors = {"model.embed_tokens.weight": vocabulary, "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = vocabulary
    for index in range(config["num_hidden_layers"]):
        tensors |= {f"model.layers.{index}.{name}.weight": size for name, size in layer.items()}
    return tensors
