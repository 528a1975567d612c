"""torch.compile over a model's dense parts: one graph each, few of them, and the same tokens."""

from __future__ import annotations

import pytest
import torch
from engine_models import MakeModel, mixed_prompts
from torch._dynamo.utils import counters

from engine import LLM, SamplingParams


@pytest.mark.heavy
def test_compiled_parts_have_no_graph_break_serve_all_layers_and_give_the_same_tokens(
    make_model: MakeModel,
) -> None:
    torch.compiler.reset()
    counters.clear()
    prompts = mixed_prompts(count=6, vocabulary=256, seed=41)
    params = SamplingParams(max_tokens=8, ignore_stop=True)
    expected = LLM(make_model(), token_budget=64).generate(prompts, params)
    llm = LLM(make_model(), token_budget=64, compile=True)
    assert [c.tokens for c in llm.generate(prompts, params)] == [c.tokens for c in expected]
    assert not counters["graph_break"]
    # Two parts, each for one token, for many, and at first for a number of them: not one for each of the layers.
    assert 2 <= counters["stats"]["unique_graphs"] <= 6
