"""`config.json` of a decoder, parsed once into a frozen dataclass.

Both spellings of the rotary settings are read: `rope_parameters` (transformers 5) and `rope_theta` with
`rope_scaling` (before). What the engine would compute wrongly is refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hub_loader.errors import ModelError

from .families import FAMILIES, Family
from .quant.gguf_file import open_gguf
from .quant.scheme import Scheme, parse_scheme

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


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
class Experts:
    """A mixture of feed-forward networks: of `count`, each token goes through `per_token`.

    inner_size: of each. normalized: whether the chosen ones' weights sum to 1. dense_layers: those without.
    """

    count: int
    per_token: int
    inner_size: int
    normalized: bool
    dense_layers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a model; sizes count elements, `context` counts tokens.

    windows: for each layer, how many tokens one sees, its own included; None: all. local_rope: the rotation
    of the layers with a window, where it is another. query_scale: what attention's scores are multiplied with.
    scheme: how the linear layers are quantized; None: they are not.
    """

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
    family: Family
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    activation: str
    windows: tuple[int | None, ...]
    local_rope: Rope | None
    query_scale: float
    attention_softcap: float
    output_softcap: float
    experts: Experts | None
    scheme: Scheme | None
    stop_tokens: frozenset[int]


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` or a GGUF file's settings, and the stop tokens of `generation_config.json` where there is one.

    Raises:
        ModelError: a file is missing or malformed, or describes a model the engine does not run.
    """
    if folder.suffix == ".gguf":
        return parse_config(open_gguf(folder).config(), {}, str(folder))
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
    family = next((FAMILIES[name] for name in architectures if name in FAMILIES), None)
    if family is None:
        found = ", ".join(map(str, architectures)) or "none"
        raise ModelError(f"{source}: architecture {found}; the engine runs {', '.join(FAMILIES)}")
    activation = data.get("hidden_activation") or data.get("hidden_act") or family.activation
    if activation not in ACTIVATIONS:
        raise ModelError(f"{source}: hidden_act {activation!r}; the engine runs {', '.join(ACTIVATIONS)}")
    quantized = data.get("quantization_config")

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
    layers = integer("num_hidden_layers")
    attention_bias = bool(data.get("attention_bias", False))
    rope, local_rope = _ropes(data, context, source)
    return ModelConfig(
        vocab_size=integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        norm_epsilon=_number(data, "rms_norm_eps", source, default=1e-6),
        rope=rope,
        tied_embeddings=bool(data.get("tie_word_embeddings", family.tied)),
        family=family,
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=attention_bias if family.output_bias is None else family.output_bias,
        mlp_bias=bool(data.get("mlp_bias", False)),
        activation=activation,
        windows=_windows(data, family, layers, source),
        local_rope=local_rope,
        query_scale=_number(data, "query_pre_attn_scalar", source, default=float(head_dim)) ** -0.5,
        attention_softcap=_softcap(data, "attn_logit_softcapping", source),
        output_softcap=_softcap(data, "final_logit_softcapping", source),
        experts=_experts(data, family, layers, integer),
        scheme=None if quantized is None else parse_scheme(quantized, source),
        stop_tokens=frozenset([stop] if isinstance(stop, int) else stop or ()),
    )


def _windows(data: Mapping[str, Any], family: Family, layers: int, source: str) -> tuple[int | None, ...]:
    window = data.get("sliding_window")
    if window is None or family.windows == "none" or not data.get("use_sliding_window", True):
        return (None,) * layers
    if type(window) is not int or window < 1:
        raise ModelError(f"{source}: sliding_window is {window!r}, expected a positive integer")
    kinds = data.get("layer_types")
    if kinds is None:
        pattern = data.get("sliding_window_pattern") or family.pattern
        local = "sliding_attention"
        kinds = [local if not pattern or (i + 1) % pattern else "full_attention" for i in range(layers)]
        if family.windows == "listed" and not pattern:  # Qwen2's own rule before layer_types were written
            first = data.get("max_window_layers", layers)
            kinds = [local if i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise ModelError(f"{source}: layer_types {kinds!r} is no list of {layers} kinds that the engine runs")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _experts(
    data: Mapping[str, Any], family: Family, layers: int, integer: Callable[..., int]
) -> Experts | None:
    if not family.experts:
        return None
    inner = integer("intermediate_size" if family.experts == "mixtral" else "moe_intermediate_size")
    every = data.get("decoder_sparse_step") or 1
    dense = {i for i in range(layers) if (i + 1) % every} | set(data.get("mlp_only_layers") or ())
    return Experts(
        count=integer("num_local_experts", data.get("num_experts")),
        per_token=integer("num_experts_per_tok"),
        inner_size=inner,
        normalized=family.experts == "mixtral" or bool(data.get("norm_topk_prob", False)),
        dense_layers=frozenset(dense),
    )


def _ropes(data: Mapping[str, Any], context: int, source: str) -> tuple[Rope, Rope | None]:
    """The rotation of the layers that see everything, and that of those with a window if it is another."""
    both = data.get("rope_parameters") or {}
    if "full_attention" in both:
        rope = _parse_rope({"rope_parameters": both["full_attention"]}, context, source)
        windowed = _parse_rope({"rope_parameters": both["sliding_attention"]}, context, source)
        return rope, None if windowed == rope else windowed
    local_theta = data.get("rope_local_base_freq")
    local = None if local_theta is None else Rope(_number(data, "rope_local_base_freq", source))
    return _parse_rope(data, context, source), local


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


def _softcap(data: Mapping[str, Any], key: str, source: str) -> float:
    return 0.0 if data.get(key) is None else _number(data, key, source)


def _number(data: Mapping[str, Any], key: str, source: str, default: float | None = None) -> float:
    value = data.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ModelError(f"{source}: {key} is {value!r}, expected a positive number")
    return float(value)
