"""`config.json` of a Llama-family model, parsed once into a frozen dataclass.

Both spellings of the rotary settings are read: `rope_parameters` (transformers 5) and `rope_theta` with
`rope_scaling` (before). What the engine would compute wrongly is refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hub_loader.errors import ModelError

ARCHITECTURES = ("LlamaForCausalLM",)


@dataclass(frozen=True)
class Rope:
    """Rotary settings; `factor` and the wavelength bounds stretch the context (1.0: as trained)."""

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a model; sizes count elements, `context` counts tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    norm_epsilon: float
    rope: Rope
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    stop_tokens: frozenset[int]


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json`, and the stop tokens of `generation_config.json` where there is one.

    Raises:
        ModelError: a file is missing or malformed, or describes a model the engine does not run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json: name a model folder in Hugging Face format")
    generation = folder / "generation_config.json"
    return parse_config(read_json(path), read_json(generation) if generation.is_file() else {}, str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        ModelError: unreadable, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): fetch the model again") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object: fetch the model again")
    return data


def parse_config(data: Mapping[str, Any], generation: Mapping[str, Any], source: str) -> ModelConfig:
    """Build a ModelConfig from the objects of config.json and generation_config.json.

    Raises:
        ModelError: names `source`, the key and what is accepted.
    """
    architectures = data.get("architectures") or []
    if not set(architectures) & set(ARCHITECTURES):
        found = ", ".join(map(str, architectures)) or "none"
        raise ModelError(f"{source}: architecture {found}; the engine runs {', '.join(ARCHITECTURES)}")
    if data.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{source}: hidden_act {data['hidden_act']!r}; the engine runs silu")
    if data.get("quantization_config"):
        raise ModelError(f"{source}: quantized checkpoints are not read; use the original and quantize=")

    def integer(key: str, default: int | None = None) -> int:
        value = data.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ModelError(f"{source}: {key} is {value!r}, expected a positive integer")
        return value

    stop = generation.get("eos_token_id")
    stop = data.get("eos_token_id") if stop is None else stop
    heads = integer("num_attention_heads")
    hidden = integer("hidden_size")
    kv_heads = integer("num_key_value_heads", heads)
    head_dim = integer("head_dim", hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            f"{source}: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads} "
            f"and head_dim {head_dim} even"
        )
    context = integer("max_position_embeddings")
    return ModelConfig(
        vocab_size=integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer("intermediate_size"),
        num_layers=integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        norm_epsilon=_number(data, "rms_norm_eps", source, default=1e-6),
        rope=_parse_rope(data, context, source),
        tied_embeddings=bool(data.get("tie_word_embeddings", False)),
        attention_bias=bool(data.get("attention_bias", False)),
        mlp_bias=bool(data.get("mlp_bias", False)),
        stop_tokens=frozenset([stop] if isinstance(stop, int) else stop or ()),
    )


def _parse_rope(data: Mapping[str, Any], context: int, source: str) -> Rope:
    settings = {"rope_theta": data.get("rope_theta")}
    settings |= data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = settings.get("rope_type", settings.get("type", "default"))
    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"{source}: partial_rotary_factor is not run; the engine rotates whole heads")
    theta = _number(settings, "rope_theta", source, default=10000.0)
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, _number(settings, "factor", source))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            _number(settings, "factor", source),
            _number(settings, "low_freq_factor", source),
            _number(settings, "high_freq_factor", source),
            int(_number(settings, "original_max_position_embeddings", source, default=context)),
        )
    raise ModelError(f"{source}: rope type {kind!r}; the engine runs default, linear and llama3")


def _number(data: Mapping[str, Any], key: str, source: str, default: float | None = None) -> float:
    value = data.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ModelError(f"{source}: {key} is {value!r}, expected a positive number")
    return float(value)
