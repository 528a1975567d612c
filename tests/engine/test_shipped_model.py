"""The model folder that ships: small, complete for either library, and it has learned Python."""

from __future__ import annotations

import inspect
import textwrap

import pytest
import torch
from engine_models import SHIPPED
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.tokenizer import Tokenizer

TEXTS = [inspect.getsource(textwrap), "def f():\n\treturn 'naïve — 数'\n", "", "  \n\n"]


def test_folder_is_at_most_ten_megabytes() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 10_000_000


@pytest.mark.parametrize("text", TEXTS, ids=["module", "unicode", "empty", "blank"])
def test_text_survives_the_tokenizer_and_transformers_agrees(text: str) -> None:
    tokenizer = Tokenizer(SHIPPED)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert AutoTokenizer.from_pretrained(SHIPPED)(text)["input_ids"] == tokens


def test_model_predicts_python_far_better_than_chance() -> None:
    tokens = torch.tensor([Tokenizer(SHIPPED).encode(TEXTS[0])[:512]])
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    with torch.inference_mode():
        loss = float(model(tokens, labels=tokens).loss)
        shuffled = tokens[:, torch.randperm(512, generator=torch.Generator().manual_seed(0))]
        loss_shuffled = float(model(shuffled, labels=shuffled).loss)
    assert loss < 4.0  # a uniform guess over 2048 tokens costs 7.6 nats
    assert loss_shuffled > loss + 1.5, "it reads order, not only frequencies"
