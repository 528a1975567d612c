"""Models, prompts and expected tokens that the engine's tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

SHIPPED = Path(__file__).parents[2] / "engine" / "models" / "stdlib-llama"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Each name is one setting that changes the arithmetic.
SHAPES: dict[str, dict[str, Any]] = {
    "grouped-heads": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "one-kv-head-tied": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases-wide-heads": {"attention_bias": True, "mlp_bias": True, "head_dim": 48},
    "rope-llama3": {"rope_parameters": LLAMA3},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
}

MakeModel = Callable[..., Path]


def write_tokenizer(folder: Path) -> None:
    """One token per byte: 256 of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def noisy_copy(folder: Path, to: Path, noise: float) -> Path:
    """A model that often agrees with that of `folder`: its weights, each moved at random by `noise` of their spread."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    weights = load_file(to / "model.safetensors")
    for weight in weights.values():
        if weight.ndim > 1:
            moved = torch.randn(weight.shape, generator=generator) * weight.float().std() * noise
            weight += moved.to(weight.dtype)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


LONGEST = 150


def mixed_prompts(count: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random prompts from 1 to LONGEST tokens, short and long ones mixed."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1 + (i * 61) % LONGEST for i in range(count - 1)] + [LONGEST]
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]


def greedy_by_transformers(folder: Path, prompts: list[list[int]], max_tokens: int) -> list[tuple[int, ...]]:
    """Each prompt alone through transformers' eager attention in float32: the generated tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    generated = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        generated.append(tuple(output[0, len(prompt) :].tolist()))
    return generated
