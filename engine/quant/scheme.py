"""How a checkpoint is quantized, as its config.json says: parsed once, and refused where it would be read wrongly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from hub_loader.errors import ModelError

METHODS = ("awq", "gptq", "compressed-tensors", "fp8")
LAYOUTS = ("pack-quantized", "int-quantized", "float-quantized")


@dataclass(frozen=True)
class Scheme:
    """One scheme for all linear layers but the `ignored`.

    format: of the PackedWeight they become. group_size: input channels that share a scale; 0: all of a row. zero_shift:
    what is added to a stored zero point. layout: how compressed-tensors stores it, else the method. blocks: rows and
    columns that share a scale, for fp8 in blocks.
    """

    method: str
    format: str
    group_size: int
    symmetric: bool
    layout: str
    zero_shift: int = 0
    ignored: tuple[str, ...] = ()
    blocks: tuple[int, int] | None = None

    def covers(self, module: str) -> bool:
        """Whether the linear layer of this name is quantized."""
        return not any(_matches(pattern, module, self.method) for pattern in self.ignored)


def parse_scheme(data: Any, source: str) -> Scheme:
    """The scheme of a quantization_config.

    Raises:
        ModelError: names `source`, the key and what is read.
    """
    if not isinstance(data, Mapping):
        raise ModelError(f"{source}: quantization_config is no object: fetch the model again")
    method = data.get("quant_method")
    if method == "awq":
        return _awq(data, source)
    if method == "gptq":
        return _gptq(data, source)
    if method == "compressed-tensors":
        return _compressed(data, source)
    if method == "fp8":
        return _fp8(data, source)
    raise _refusal(source, "quant_method", method, ", ".join(METHODS))


def _awq(data: Mapping[str, Any], source: str) -> Scheme:
    if data.get("bits", data.get("w_bit")) != 4:
        raise _refusal(source, "bits", data.get("bits", data.get("w_bit")), "4, which AWQ has")
    version = str(data.get("version", "gemm")).lower()
    if version != "gemm":
        raise _refusal(source, "version", data.get("version"), "gemm")
    group = _group(data.get("group_size", data.get("q_group_size")), source)
    ignored = (*_names(data.get("modules_to_not_convert"), source), "lm_head")
    return Scheme("awq", "int4", group, not data.get("zero_point", True), "awq", ignored=ignored)


def _gptq(data: Mapping[str, Any], source: str) -> Scheme:
    bits = data.get("bits")
    if bits not in (4, 8):
        raise _refusal(source, "bits", bits, "4 or 8")
    written = data.get("checkpoint_format", "gptq")
    if written not in ("gptq", "gptq_v2"):
        raise _refusal(source, "checkpoint_format", written, "gptq or gptq_v2")
    if data.get("dynamic"):
        raise _refusal(source, "dynamic", data["dynamic"], "one scheme for all layers")
    group, shift = _group(data.get("group_size"), source), int(written == "gptq")
    ignored = () if data.get("lm_head") else ("lm_head",)
    return Scheme("gptq", f"int{bits}", group, bool(data.get("sym", True)), "gptq", shift, ignored)


def _compressed(data: Mapping[str, Any], source: str) -> Scheme:
    groups = data.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise _refusal(source, "config_groups", groups, "one group")
    (found,) = groups.values()
    if not isinstance(found, Mapping) or not isinstance(found.get("weights"), Mapping):
        raise _refusal(source, "config_groups", groups, "one group with weights")
    if found.get("targets") != ["Linear"]:
        raise _refusal(source, "targets", found.get("targets"), '["Linear"]')
    if data.get("transform_config"):
        raise _refusal(
            source, "transform_config", data["transform_config"], "weights that are not transformed"
        )
    layout = found.get("format") or data.get("format")
    if layout not in LAYOUTS:
        raise _refusal(source, "format", layout, ", ".join(LAYOUTS))
    weights = found["weights"]
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    accepted = {"pack-quantized": (4, "int"), "int-quantized": (8, "int"), "float-quantized": (8, "float")}
    if (bits, kind) != accepted[layout]:
        raise _refusal(source, f"{layout} weights", f"{kind}{bits}", "{1}{0}".format(*accepted[layout]))
    strategies = ("tensor", "channel", "group", *(["block"] if kind == "float" else []))
    if strategy not in strategies:
        raise _refusal(source, "strategy", strategy, ", ".join(strategies))
    group = _group(weights.get("group_size"), source) if strategy == "group" else 0
    blocks = _blocks(weights.get("block_structure"), source) if strategy == "block" else None
    format = "fp8" if kind == "float" else f"int{bits}"
    ignored = _names(data.get("ignore"), source)
    symmetric = bool(weights.get("symmetric", True))
    return Scheme("compressed-tensors", format, group, symmetric, layout, ignored=ignored, blocks=blocks)


def _fp8(data: Mapping[str, Any], source: str) -> Scheme:
    if data.get("fmt", "e4m3") != "e4m3":
        raise _refusal(source, "fmt", data["fmt"], "e4m3")
    size = data.get("weight_block_size")
    blocks = None if size is None else _blocks(size, source)
    names = (data.get(key) for key in ("modules_to_not_convert", "ignored_layers"))
    ignored = (*(name for found in names for name in _names(found, source)), "lm_head")
    return Scheme("fp8", "fp8", 0, True, "fp8", ignored=ignored, blocks=blocks)


def _group(value: Any, source: str) -> int:
    if value == -1:
        return 0
    if type(value) is not int or value < 1:
        raise _refusal(source, "group_size", value, "a positive integer, or -1 for a whole row")
    return value


def _blocks(value: Any, source: str) -> tuple[int, int]:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
        raise _refusal(source, "the blocks' size", value, "two positive integers")
    return value[0], value[1]


def _names(value: Any, source: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(v, str) for v in value)
    ):
        raise _refusal(source, "the layers left out", value, "a list of names")
    for name in value:
        try:
            re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
        except re.error as error:
            raise _refusal(source, "the layers left out", name, f"regular expressions ({error})") from None
    return tuple(value)


def _refusal(source: str, key: str, value: Any, accepted: str) -> ModelError:
    return ModelError(f"{source}: quantization_config has {key} {value!r}; the engine reads {accepted}")


def _matches(pattern: str, module: str, method: str) -> bool:
    """compressed-tensors names layers whole or by "re:…"; the others by any part of the name."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if method == "compressed-tensors":
        return pattern == module
    return pattern in module or fnmatch(module, pattern)
