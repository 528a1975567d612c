"""Each family's tokens and logits are transformers' own, on small checkpoints with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engine_models import greedy_by_transformers, mixed_prompts, noisy_copy, write_tokenizer

from engine import LLM, SamplingParams
from engine.config import load_config
from engine.kernels import bind, slot_sources
from hub_loader.errors import ModelError

SHARED = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "eos_token_id": 5,
}
LISTED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": 20, "head_dim": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, **LISTED}),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 24, **LISTED}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16, **LISTED}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, settings = FAMILIES[request.param]
    torch.manual_seed(7)
    config = getattr(transformers, f"{name}Config")(**SHARED, **settings)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # biases and norms too, so that one left out shows
            parameter.normal_(1.0 if key.endswith("norm.weight") else 0.0, 0.2)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def test_family_in_one_batch_of_mixed_prompts_gives_transformers_tokens(checkpoint: Path) -> None:
    prompts = mixed_prompts(count=10, vocabulary=256, seed=40)
    expected = greedy_by_transformers(checkpoint, prompts, max_tokens=10)
    assert len({tokens[:3] for tokens in expected}) > 3, "the prompts must lead to different continuations"
    llm = LLM(checkpoint, token_budget=64, block_size=8)
    done = llm.generate(prompts, SamplingParams(max_tokens=10))
    assert [completion.tokens for completion in done] == expected
    # The same where a kernel does in one pass what is between projection and attention.
    plain = bind(slot_sources("torch", None))
    bindings = [replace(b, source="org/x") if b.slot == "qkv" else b for b in plain.bindings]
    llm = LLM(checkpoint, token_budget=64, block_size=8, kernels=replace(plain, bindings=tuple(bindings)))
    assert [c.tokens for c in llm.generate(prompts, SamplingParams(max_tokens=10))] == expected


def test_family_with_draft_trees_gives_the_tokens_of_plain_decoding(checkpoint: Path, tmp_path: Path) -> None:
    prompts = mixed_prompts(count=3, vocabulary=256, seed=41)
    params = SamplingParams(max_tokens=12, ignore_stop=True)
    expected = [c.tokens for c in LLM(checkpoint).generate(prompts, params)]
    llm = LLM(checkpoint, speculate=f"tree:{noisy_copy(checkpoint, tmp_path, 0.1)}:8:4")
    assert [c.tokens for c in llm.generate(prompts, params)] == expected
    assert llm.scheduler.counters.accepted_tokens > 0


def test_family_logprobs_are_transformers_own_to_six_digits(checkpoint: Path) -> None:
    prompt = mixed_prompts(count=2, vocabulary=256, seed=41)[1][:60]
    [done] = LLM(checkpoint).generate([prompt], SamplingParams(max_tokens=4, logprobs=5, ignore_stop=True))
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *done.tokens]])).logits[0, len(prompt) - 1 : -1]
    logs = logits.to(torch.float64).log_softmax(-1)
    for choice, row in zip(done.choices, logs, strict=True):
        for token, value in choice.top:
            assert value == pytest.approx(float(row[token]), rel=1e-4, abs=1e-4)


def edited(folder: Path, into: Path, **changes: Any) -> Path:
    data = json.loads((folder / "config.json").read_text())
    data |= changes
    for key in [key for key, value in data.items() if value == "gone"]:
        del data[key]
    (into / "config.json").write_text(json.dumps(data))
    return into


@pytest.mark.parametrize("checkpoint", ["gemma3"], indirect=True)
def test_older_spelling_of_gemma3_means_the_same(checkpoint: Path, tmp_path: Path) -> None:
    now = load_config(checkpoint)
    then = load_config(
        edited(
            checkpoint,
            tmp_path,
            rope_parameters="gone",
            layer_types="gone",
            _sliding_window_pattern="gone",
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            sliding_window_pattern=2,
        )
    )
    assert then == now
    assert now.windows == (16, None, 16, None)


@pytest.mark.parametrize("checkpoint", ["mistral"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sliding_window": 0}, "sliding_window is 0, expected a positive integer"),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
    ],
)
def test_windows_that_are_not_run_are_refused(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load_config(edited(checkpoint, tmp_path, **changes))
