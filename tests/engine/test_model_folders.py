"""A folder the engine cannot run is refused in one line that names the file and the cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import LLM, SamplingParams
from engine.config import Rope, load_config, parse_config
from hub_loader.errors import ModelError, UsageError

MINIMAL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA3 = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        LLM(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder_without_config_is_refused(broken_model: Path) -> None:
    (broken_model / "config.json").unlink()
    message = refusal(broken_model)
    assert f"{broken_model} has no config.json" in message
    assert "name a model folder" in message


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_config_that_is_no_json_object_is_refused(broken_model: Path, content: str) -> None:
    (broken_model / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refusal(broken_model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertModel"]}, ("BertModel", "LlamaForCausalLM")),
        ({"architectures": None}, ("none", "LlamaForCausalLM")),
        ({"hidden_act": "relu"}, ("'relu'", "silu")),
        ({"quantization_config": {"bits": 4}}, ("quant_method None", "awq, gptq, compressed-tensors, fp8")),
        ({"num_hidden_layers": None}, ("num_hidden_layers is None", "positive integer")),
        ({"hidden_size": "96"}, ("hidden_size is '96'", "positive integer")),
        ({"num_key_value_heads": 4}, ("num_key_value_heads 4", "multiple")),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ("'yarn'", "llama3")),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8}},
            ("low_freq_factor is None", "positive number"),
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor", "whole heads")),
        ({"rms_norm_eps": "tiny"}, ("rms_norm_eps is 'tiny'", "positive number")),
        ({"hidden_size": 100}, ("config.json implies",)),
        ({"num_hidden_layers": 4}, ("model.layers.3.", "no tensor")),
    ],
    ids=str,
)
def test_config_of_a_model_that_is_not_run_is_refused(
    edit_config: Callable[..., Path], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = refusal(edit_config(**changes))
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_missing_file_is_refused_by_name(broken_model: Path, name: str) -> None:
    (broken_model / name).unlink()
    assert name in refusal(broken_model)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_file_cut_short_is_refused_by_name(broken_model: Path, name: str) -> None:
    whole = (broken_model / name).read_bytes()
    (broken_model / name).write_bytes(whole[: len(whole) // 2])
    assert name in refusal(broken_model)


def test_missing_shard_is_refused_by_name(broken_model: Path) -> None:
    (broken_model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (broken_model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in refusal(broken_model)


def test_stop_tokens_come_from_generation_config_first(edit_config: Callable[..., Path]) -> None:
    folder = edit_config(eos_token_id=3)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load_config(folder).stop_tokens == {7, 9}
    (folder / "generation_config.json").unlink()
    assert load_config(folder).stop_tokens == {3}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2}},
            Rope(5e5, "linear", 2.0),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            Rope(5e5, "llama3", 8.0, 1.0, 4.0, 64),
        ),
    ],
)
def test_both_spellings_of_rope_settings_mean_the_same(
    old: dict[str, Any], new: dict[str, Any], expected: Rope
) -> None:
    assert parse_config(MINIMAL | old, {}, "config.json").rope == expected
    assert parse_config(MINIMAL | new, {}, "config.json").rope == expected


def test_optional_keys_absent_then_llamas_defaults() -> None:
    config = parse_config(MINIMAL, {}, "config.json")
    assert (config.num_kv_heads, config.head_dim, config.tied_embeddings) == (2, 4, False)
    assert config.rope == Rope(10000.0)
    assert config.stop_tokens == frozenset()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "prompt is empty"), ([], "prompt is empty"), ([256], "outside 0 … 255"), ([-1], "outside 0 … 255")],
)
def test_prompt_that_cannot_run_is_refused(broken_model: Path, prompt: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LLM(broken_model).add(prompt)


def test_prompt_longer_than_the_cache_is_refused_and_nothing_is_queued(broken_model: Path) -> None:
    llm = LLM(broken_model, num_blocks=2, block_size=16)
    with pytest.raises(UsageError, match="cache of 32 tokens: raise num_blocks"):
        llm.generate([[1] * 5, [1] * 30], SamplingParams(max_tokens=4))
    assert not llm.busy


@pytest.mark.parametrize(
    "argument",
    [{"dtype": "int8"}, {"quantize": "int3"}, {"num_blocks": 0}, {"token_budget": 0}, {"block_size": -1}],
    ids=str,
)
def test_argument_out_of_range_is_refused_by_name(broken_model: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(argument))):
        LLM(broken_model, **argument)
