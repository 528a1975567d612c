"""Quantized checkpoints: logits within stated bounds of what the stored weights stand for, in float64.

Bounds on the norm of the difference, relative to the logits' own: float32 1e-5, bfloat16 8e-2 (three layers that
round after every operation, of random weights: over 25 seeds the median was 2.6e-2 and the worst 5.4e-2).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import quantized_models as stored
import torch
from engine_models import MakeModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine import LLM, SamplingParams, torch_ops
from engine.batch import build_batch
from engine.kernels import bind, slot_sources
from engine.linear import serves
from engine.quant.checkpoint import dense, read_linear
from engine.quant.packed import dequantize, quantize
from engine.quant.scheme import parse_scheme
from engine.scheduler import Chunk, Sequence, Step
from hub_loader.errors import ModelError, UsageError

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
# Of the logits' norm; bfloat16 keeps 8 bits of each of the dozens of results between.
BOUNDS = {"float32": 1e-5, "bfloat16": 8e-2}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
CASES: dict[str, tuple[Callable[[torch.Tensor], stored.Stored], dict[str, Any]]] = {
    "awq": (stored.awq, AWQ),
    "gptq": (stored.gptq, GPTQ),
    "gptq-asymmetric": (partial(stored.gptq, symmetric=False), GPTQ | {"sym": False}),
    "gptq-act-order": (partial(stored.gptq, act_order=True), GPTQ | {"desc_act": True}),
    "gptq-v2": (
        partial(stored.gptq, symmetric=False, shift=0),
        GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
    ),
    "gptq-8-bit": (partial(stored.gptq, bits=8), GPTQ | {"bits": 8}),
    "gptq-8-bit-asymmetric": (
        partial(stored.gptq, bits=8, symmetric=False),
        GPTQ | {"bits": 8, "sym": False},
    ),
    "packed-int4": (stored.packed_int4, stored.compressed("pack-quantized", INT4)),
    "packed-int4-asymmetric": (
        partial(stored.packed_int4, symmetric=False),
        stored.compressed("pack-quantized", INT4 | {"symmetric": False}),
    ),
    "int8": (stored.int8, stored.compressed("int-quantized", INT8)),
    "int8-per-tensor": (
        partial(stored.int8, per_tensor=True),
        stored.compressed("int-quantized", INT8 | {"strategy": "tensor"}),
    ),
    "fp8": (stored.fp8, stored.compressed("float-quantized", FP8)),
    "fp8-per-tensor": (
        partial(stored.fp8, per_tensor=True),
        stored.compressed("float-quantized", FP8 | {"strategy": "tensor"}),
    ),
    "fp8-blocks": (stored.fp8_blocks, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 32]}),
}


@pytest.fixture(scope="session")
def quantized(
    make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """quantized("awq") -> (the dense folder, the quantized one)."""
    made: dict[str, Path] = {}

    def make(name: str) -> tuple[Path, Path]:
        source = make_model("biases", attention_bias=True)
        if name not in made:
            target = tmp_path_factory.mktemp("quantized") / name
            made[name] = stored.quantize_folder(source, target, *CASES[name])
        return source, made[name]

    return make


def logits_of(llm: LLM, prompt: list[int]) -> torch.Tensor:
    """Logits of the last token."""
    sequence = Sequence(0, prompt, 5, blocks=list(range(4)))
    step = Step([Chunk(sequence, 0, len(prompt), True)])
    return llm._model.forward(build_batch(step, 16, torch_ops.plan_step), llm._cache)[0]


def error_of(got: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits are from the expected ones, of their norm: one logit's luck does not decide."""
    return float(torch.linalg.vector_norm(got.double() - expected) / torch.linalg.vector_norm(expected))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_within_the_bound_of_what_is_stored(
    quantized: Callable[[str], tuple[Path, Path]], name: str, dtype: str
) -> None:
    source, target = quantized(name)
    expected = stored.twin_logits(source, target, PROMPT)[-1]
    assert error_of(logits_of(LLM(target, dtype=dtype), PROMPT), expected) < BOUNDS[dtype]


def test_greedy_tokens_of_a_quantized_checkpoint_are_those_of_what_is_stored(
    quantized: Callable[[str], tuple[Path, Path]],
) -> None:
    source, target = quantized("gptq-act-order")
    (completion,) = LLM(target).generate([PROMPT], SamplingParams(max_tokens=5, ignore_stop=True))
    tokens = list(PROMPT)
    for _ in range(5):
        tokens.append(int(stored.twin_logits(source, target, tokens)[-1].argmax()))
    assert list(completion.tokens) == tokens[len(PROMPT) :]


def test_quantized_checkpoint_is_not_quantized_again(quantized: Callable[[str], tuple[Path, Path]]) -> None:
    with pytest.raises(UsageError, match=r"awq is quantized already \(int4\)"):
        LLM(quantized("awq")[1], quantize="int8")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], "is no object"),
        ({}, "quant_method None; the engine reads awq, gptq"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        (AWQ | {"bits": 8}, "bits 8"),
        (AWQ | {"version": "gemv"}, "version 'gemv'"),
        (GPTQ | {"bits": 3}, "bits 3; the engine reads 4 or 8"),
        (GPTQ | {"group_size": 0}, "group_size 0"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        (GPTQ | {"dynamic": {"-:x": {}}}, "dynamic"),
        (stored.compressed("marlin-24", INT4), "format 'marlin-24'"),
        (stored.compressed("int-quantized", INT8 | {"num_bits": 6}), "weights 'int6'"),
        (stored.compressed("float-quantized", FP8 | {"strategy": "tensor_group"}), "strategy 'tensor_group'"),
        (stored.compressed("int-quantized", INT8) | {"config_groups": {}}, "config_groups"),
        (stored.compressed("int-quantized", INT8) | {"ignore": "lm_head"}, "a list of names"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "two positive integers"),
    ],
    ids=str,
)
def test_quantization_config_that_is_not_read_is_refused(config: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words.replace("(", r"\(")):
        parse_scheme(config, "config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_size": 64}, "no multiple of quantization_config's group_size 64|config.json implies"),
        ({"bits": 8}, "config.json implies"),
        ({"quant_method": "awq", "version": "gemm", "zero_point": True}, "config.json implies"),
        (stored.compressed("int-quantized", INT8), "no tensor 'model.layers.0.self_attn.q_proj.weight'"),
    ],
    ids=["group", "bits", "method", "layout"],
)
def test_quantization_config_that_the_tensors_contradict_is_refused(
    quantized: Callable[[str], tuple[Path, Path]], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    _, target = quantized("gptq")
    for file in target.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        LLM(tmp_path)


def test_order_of_columns_that_gives_no_whole_groups_is_refused(
    quantized: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    _, target = quantized("gptq-act-order")
    for file in target.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.g_idx"].zero_()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"model.layers.1.mlp.down_proj.g_idx does not give each group 32 columns"
    ):
        LLM(tmp_path)


def test_layers_that_a_scheme_leaves_out_are_matched_by_name_or_expression() -> None:
    config = stored.compressed("int-quantized", INT8) | {"ignore": ["lm_head", r"re:.*\.experts\..*"]}
    scheme = parse_scheme(config, "config.json")
    assert not scheme.covers("lm_head")
    assert not scheme.covers("model.layers.0.mlp.experts.3.w1")
    assert scheme.covers("model.layers.0.mlp.down_proj")
    awq = parse_scheme(AWQ | {"modules_to_not_convert": ["visual"]}, "config.json")
    assert not awq.covers("model.visual.q_proj")
    assert not awq.covers("lm_head")


class Stored(dict[str, torch.Tensor]):
    """A checkpoint's tensors."""

    def has(self, name: str) -> bool:
        return name in self

    def get(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:  # type: ignore[override]
        return self[name]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scale_and_zero_point_of_a_whole_tensor_may_have_any_number_of_dimensions(
    shape: tuple[int, ...],
) -> None:
    values = torch.arange(-16, 16).to(torch.int8).view(4, 8)
    tensors = Stored({"m.weight": values, "m.weight_scale": torch.full(shape, 0.5)})
    tensors["m.weight_zero_point"] = torch.full(shape, 3, dtype=torch.int8)
    scheme = parse_scheme(
        stored.compressed("int-quantized", INT8 | {"strategy": "tensor", "symmetric": False}), "c"
    )
    weight = dense(read_linear(tensors, "m", (4, 8), scheme))
    assert torch.equal(weight, (values.float() - 3) * 0.5)
    tensors["m.weight_zero_point"] = torch.zeros(3, dtype=torch.int8)
    with pytest.raises(
        ModelError, match=r"m.weight_zero_point is \[3\], quantization_config implies \[4, 1\]"
    ):
        read_linear(tensors, "m", (4, 8), scheme)


def test_quantized_weights_without_a_scheme_are_refused(
    quantized: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    for file in quantized("int8")[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"q_proj.weight' is torch.int8, and .* does not say how"):
        LLM(tmp_path)


def test_groups_that_the_kernel_does_not_multiply_are_left_to_torch() -> None:
    kernels = replace(bind(slot_sources("torch", None)), formats=frozenset({"int4"}))
    for group, served in ((32, True), (512, True), (1024, False), (96, False), (3072, True)):
        assert serves(kernels, quantize(torch.randn(2, 3072), "int4", group)) == served


@pytest.mark.parametrize("format", ["int8", "int4", "fp8"])
def test_model_quantized_on_load_has_integers_in_its_output_layer_too_and_a_dense_embedding(
    make_model: MakeModel, format: str
) -> None:
    folder = make_model("biases", attention_bias=True)
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    kinds = {"lm_head": None if format == "fp8" else "int8"}
    with torch.no_grad():
        for name, layer in twin.named_modules():
            kind = kinds.get(name, format)
            if isinstance(layer, torch.nn.Linear) and kind is not None:
                layer.weight.copy_(dequantize(quantize(layer.weight, kind, group_size=32)))
        expected = twin.double()(torch.tensor([PROMPT])).logits[0, -1]
    assert error_of(logits_of(LLM(folder, quantize=format), PROMPT), expected) < BOUNDS["float32"]
    assert error_of(logits_of(LLM(folder), PROMPT), expected) > 10 * BOUNDS["float32"]
