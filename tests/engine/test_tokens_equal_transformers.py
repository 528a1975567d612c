"""The engine's greedy tokens are transformers' own, whatever shares the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import LONGEST, SHAPES, SHIPPED, MakeModel, greedy_by_transformers, mixed_prompts

from engine import LLM, SamplingParams
from hub_loader.errors import ModelError, UsageError


def engine_tokens(llm: LLM, prompts: list[list[int]], max_tokens: int) -> list[tuple[int, ...]]:
    return [c.tokens for c in llm.generate(prompts, SamplingParams(max_tokens=max_tokens))]


@pytest.mark.parametrize("shape", SHAPES)
def test_32_prompts_of_mixed_length_in_one_batch_give_transformers_tokens(
    make_model: MakeModel, shape: str
) -> None:
    folder = make_model(shape)
    prompts = mixed_prompts(count=32, vocabulary=256, seed=11)
    expected = greedy_by_transformers(folder, prompts, max_tokens=12)
    assert len({tokens[:4] for tokens in expected}) > 16, "the prompts must lead to different continuations"
    llm = LLM(folder, token_budget=200)
    assert engine_tokens(llm, prompts, 12) == expected
    assert llm.scheduler.pool.available == llm.scheduler.pool.num_blocks


def test_32_prompts_on_the_shipped_model_give_transformers_tokens() -> None:
    prompts = mixed_prompts(count=32, vocabulary=2048, seed=12)
    expected = greedy_by_transformers(SHIPPED, prompts, max_tokens=16)
    assert engine_tokens(LLM(SHIPPED), prompts, 16) == expected


@pytest.mark.parametrize(
    "limits",
    [
        {"token_budget": 7},  # every prompt in chunks
        {"num_blocks": 11, "block_size": 16},  # one whole sequence and a little: preemption
        {"num_blocks": 60, "block_size": 3, "token_budget": 50, "max_sequences": 9},
        {"block_size": 1},
        {"max_sequences": 1},
    ],
    ids=str,
)
def test_tokens_under_tight_limits_are_the_same(make_model: MakeModel, limits: dict[str, Any]) -> None:
    folder = make_model()
    prompts = mixed_prompts(count=12, vocabulary=256, seed=13)
    assert engine_tokens(LLM(folder, **limits), prompts, 20) == engine_tokens(LLM(folder), prompts, 20)


def test_a_small_pool_does_preempt(make_model: MakeModel, caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM(make_model(), num_blocks=11, block_size=16)
    with caplog.at_level("INFO", logger="engine"):
        engine_tokens(llm, mixed_prompts(count=12, vocabulary=256, seed=13), 20)
    assert "gave up" in caplog.text
    assert "raise num_blocks" in caplog.text


def test_a_request_added_while_others_decode_gets_the_tokens_it_gets_alone(make_model: MakeModel) -> None:
    llm = LLM(make_model())
    early, late = mixed_prompts(count=2, vocabulary=256, seed=14)
    params = SamplingParams(max_tokens=10, ignore_stop=True)
    alone = {tuple(c.prompt_tokens): c.tokens for c in llm.generate([early, late], params)}
    llm.add(early, params)
    for _ in range(4):
        assert [delta.completion for delta in llm.step()] == [None]
    llm.add(late, params)
    together = []
    while llm.busy:
        together += [delta.completion for delta in llm.step() if delta.completion]
    assert {c.prompt_tokens: c.tokens for c in together} == alone
    assert [c.prompt_tokens for c in together] == [tuple(early), tuple(late)]


def test_garbage_in_unused_cache_slots_does_not_reach_the_tokens(make_model: MakeModel) -> None:
    prompts = mixed_prompts(count=5, vocabulary=256, seed=15)
    llm = LLM(make_model(), share_prefixes=False)
    expected = engine_tokens(llm, prompts, 8)
    for keys, values in llm._cache:
        keys.fill_(torch.nan)
        values.fill_(torch.inf)
    assert engine_tokens(llm, prompts, 8) == expected


def test_a_sharded_checkpoint_gives_the_tokens_of_the_single_file(make_model: MakeModel) -> None:
    sharded = make_model("sharded", shards="200KB", **SHAPES["grouped-heads"])
    assert len(list(sharded.glob("*.safetensors"))) > 2
    prompts = mixed_prompts(count=3, vocabulary=256, seed=16)
    assert engine_tokens(LLM(sharded), prompts, 6) == greedy_by_transformers(sharded, prompts, 6)


def test_seeded_sampling_does_not_depend_on_the_batch(make_model: MakeModel) -> None:
    llm = LLM(make_model())
    prompts = mixed_prompts(count=6, vocabulary=256, seed=17)
    params = SamplingParams(max_tokens=10, temperature=0.9, top_p=0.95, seed=4)
    together = [c.tokens for c in llm.generate(prompts, params)]
    assert together == [llm.generate([prompt], params)[0].tokens for prompt in prompts]


def test_a_prompt_that_fills_the_context_runs_and_one_token_more_is_refused(make_model: MakeModel) -> None:
    llm = LLM(make_model())
    (completion,) = llm.generate([[1] * 251], SamplingParams(max_tokens=5, ignore_stop=True))
    assert (len(completion.tokens), completion.finish_reason) == (5, "length")
    with pytest.raises(UsageError, match=r"252 tokens with max_tokens=5 exceeds the model's context of 256"):
        llm.add([1] * 252, SamplingParams(max_tokens=5))


@pytest.mark.parametrize("quantize", ["int8", "int4", "w4a8"])
def test_quantized_on_load_equals_a_checkpoint_of_the_rounded_weights(
    make_model: MakeModel, tmp_path: Path, quantize: str
) -> None:
    from safetensors.torch import load_file, save_file

    from engine.linear import output_format, packed_format
    from engine.torch_ops import dequantize
    from engine.torch_ops import quantize as pack

    folder = make_model()
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        kind = (
            packed_format(quantize)
            if "_proj" in name
            else output_format(quantize)
            if name == "lm_head.weight"
            else None
        )
        if kind:
            weights[name] = dequantize(pack(weight, kind, group_size=32))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    prompts = mixed_prompts(count=8, vocabulary=256, seed=18)
    quantized = engine_tokens(LLM(folder, quantize=quantize), prompts, 8)
    assert quantized == greedy_by_transformers(tmp_path, prompts, 8)
    assert max(map(len, prompts)) == LONGEST


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_give_the_first_token_of_float32_for_most_prompts(
    make_model: MakeModel, dtype: str
) -> None:
    prompts = mixed_prompts(count=16, vocabulary=256, seed=19)
    wide, narrow = LLM(make_model()), LLM(make_model(), dtype=dtype)
    pairs = zip(engine_tokens(wide, prompts, 1), engine_tokens(narrow, prompts, 1), strict=True)
    assert sum(a == b for a, b in pairs) >= 14
    assert narrow._cache[0][0].dtype is getattr(torch, dtype)


def test_int4_of_a_layer_that_does_not_divide_into_groups_is_refused(make_model: MakeModel) -> None:
    folder = make_model("odd-inner", intermediate_size=100)
    assert LLM(folder, quantize="int8").generate([[1]], SamplingParams(max_tokens=1))
    with pytest.raises(ModelError, match="100 inputs does not divide into int4 groups of 32: use int8"):
        LLM(folder, quantize="int4")
