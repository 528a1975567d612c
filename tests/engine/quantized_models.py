"""Tiny checkpoints in the layouts that quantizers publish, written from the formats' own descriptions.

`quantize_folder` replaces the linear layers of a folder's checkpoint by stored tensors and returns what they stand
for in float64; the layouts are packed element by element, unlike the engine's readers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUP = 32
Stored = tuple[Mapping[str, torch.Tensor], torch.Tensor]
"""Tensors by the end of their name, and the weight [N, K] in float64 that they stand for."""


def _groups(weight: torch.Tensor, bits: int, symmetric: bool, size: int) -> tuple[torch.Tensor, ...]:
    """Values int64 [N, K], zeros int64 [N, G], scales float16 [N, G] of a weight rounded in groups."""
    rows, columns = weight.shape
    grouped = weight.view(rows, -1, size).double()
    top = 2**bits - 1
    if symmetric:
        scales = (grouped.abs().amax(-1) / (top // 2)).half()
        zeros = torch.full(scales.shape, (top + 1) // 2)
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = ((high - low) / top).half()
        zeros = (-low / scales.double()).round().clamp(1, top).long()
    values = (grouped / scales.double()[..., None]).round().long() + zeros[..., None]
    return values.clamp(0, top).view(rows, columns), zeros, scales


def _pack(values: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """int64 [R, C] -> int32 [R, C * bits / 32], the first of each (in `order`) in the lowest bits."""
    per = 32 // bits
    rows, columns = values.shape
    order = order or tuple(range(per))
    out = torch.zeros(rows, -(-columns // per), dtype=torch.int64)
    for column in range(columns):
        place = order.index(column % per)
        out[:, column // per] |= values[:, column] << bits * place
    return torch.where(out >= 2**31, out - 2**32, out).to(torch.int32)


def awq(weight: torch.Tensor) -> Stored:
    values, zeros, scales = _groups(weight, 4, False, GROUP)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    stored = {
        "qweight": _pack(values.T, 4, order),
        "qzeros": _pack(zeros.T, 4, order),
        "scales": scales.T.contiguous(),
    }
    return stored, _dequantized(values, zeros, scales, torch.arange(weight.shape[1]) // GROUP)


def gptq(
    weight: torch.Tensor, bits: int = 4, symmetric: bool = True, act_order: bool = False, shift: int = 1
) -> Stored:
    columns = weight.shape[1]
    group_of = torch.arange(columns) // GROUP
    if act_order:  # of each layer its own, as if quantized one by one
        group_of = group_of[torch.randperm(columns, generator=torch.Generator().manual_seed(weight.shape[0]))]
    sorted_columns = group_of.argsort(stable=True)
    values, zeros, scales = _groups(weight[:, sorted_columns], bits, symmetric, GROUP)
    values = values[:, sorted_columns.argsort()]
    stored = {
        "qweight": _pack(values, bits).T.contiguous(),
        "qzeros": _pack(zeros.T - shift, bits),
        "scales": scales.T.contiguous(),
        "g_idx": group_of.to(torch.int32),
    }
    return stored, _dequantized(values, zeros, scales, group_of)


def packed_int4(weight: torch.Tensor, symmetric: bool = True) -> Stored:
    values, zeros, scales = _groups(weight, 4, symmetric, GROUP)
    stored = {
        "weight_packed": _pack(values, 4),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        stored["weight_zero_point"] = _pack(zeros.T, 4).T.contiguous()
    return stored, _dequantized(values, zeros, scales, torch.arange(weight.shape[1]) // GROUP)


def int8(weight: torch.Tensor, per_tensor: bool = False) -> Stored:
    largest = weight.abs().amax() if per_tensor else weight.abs().amax(1, keepdim=True)
    scale = (largest / 127).to(torch.bfloat16)
    values = (weight / scale.float()).round().clamp(-128, 127).to(torch.int8)
    return {"weight": values, "weight_scale": scale.reshape(-1, 1) if not per_tensor else scale.reshape(1)}, (
        values.double() * scale.double()
    )


def fp8(weight: torch.Tensor, per_tensor: bool = False) -> Stored:
    largest = weight.abs().amax() if per_tensor else weight.abs().amax(1, keepdim=True)
    scale = (largest / 448).float()
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale.reshape(-1, 1) if not per_tensor else scale.reshape(1)}, (
        values.double() * scale.double()
    )


def fp8_blocks(weight: torch.Tensor) -> Stored:
    rows, columns = weight.shape
    tall = -(-rows // 64)
    scale = torch.rand(tall, columns // 32, generator=torch.Generator().manual_seed(rows)) * 0.01 + 0.001
    wide = scale.repeat_interleave(64, 0)[:rows].repeat_interleave(32, 1)
    values = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale_inv": scale}, values.double() * wide.double()


def _dequantized(
    values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor
) -> torch.Tensor:
    group_of = group_of.long()
    return (values - zeros[:, group_of]).double() * scales.double()[:, group_of]


def quantize_folder(
    source: Path, target: Path, store: Callable[[torch.Tensor], Stored], config: Mapping[str, Any]
) -> Path:
    """Write a copy of a model folder whose linear layers are stored by `store`; its float64 twin goes beside it."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64, attn_implementation="eager")
    twins = model.state_dict()
    written: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith(tuple(f"{end}.weight" for end in LINEAR)):
            written[name] = tensor
            continue
        stored, stands_for = store(tensor)
        written |= {name.removesuffix("weight") + end: value.contiguous() for end, value in stored.items()}
        twins[name] = stands_for
    save_file(written, target / "model.safetensors", metadata={"format": "pt"})
    model.load_state_dict(twins)
    torch.save(model.state_dict(), target / "twin.pt")
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | {"quantization_config": dict(config)}))
    return target


def twin_logits(source: Path, target: Path, prompt: list[int]) -> torch.Tensor:
    """Logits [T, vocabulary] in float64 of what a quantized folder stands for."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64, attn_implementation="eager")
    model.load_state_dict(torch.load(target / "twin.pt"))
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([prompt])).logits[0]
    return logits


def compressed(layout: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": dict(weights), "input_activations": None}
        },
    }
