"""Tokens drawn by chance have the model's own distribution, whatever was guessed: tests that a wrong rule fails."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_models import noisy_copy, write_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import engine.sampler
from engine import LLM, SamplingParams
from engine.chances import accept, pick
from engine.sampler import Draws
from engine.speculation.draft_model import ModelChain

Rule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
VOCABULARY, LENGTH, PROMPT = 5, 3, [1, 2]


def keep_always(
    own: torch.Tensor, guessed: torch.Tensor, tokens: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Wrong: what was guessed is what comes."""
    return tokens


def redraw_from_own(
    own: torch.Tensor, guessed: torch.Tensor, tokens: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Wrong: what was guessed too often is drawn again, and then too often."""
    places = tokens[:, None]
    kept = numbers[:, :1] * guessed.gather(1, places) < own.gather(1, places)
    return torch.where(kept.squeeze(1), tokens, pick(own, numbers[:, 1]))


def distance(rule: Rule, own: torch.Tensor, guessed: torch.Tensor, steps: int = 300) -> float:
    """Total variation between `own` and what `rule` makes of draws from `guessed`, over a fine grid of numbers."""
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    numbers = torch.cartesian_prod(grid, grid)
    made = torch.zeros_like(own)
    for token, chance in enumerate(guessed):
        rows = torch.full((len(numbers),), token)
        got = rule(own.expand(len(rows), -1), guessed.expand(len(rows), -1), rows, numbers)
        made += chance * torch.bincount(got, minlength=len(own)) / len(rows)
    return float((made - own).abs().sum() / 2)


@pytest.mark.parametrize("case", range(5))
def test_accepted_and_redrawn_tokens_together_have_the_models_own_distribution(case: int) -> None:
    generator = torch.Generator().manual_seed(case)
    own, guessed = torch.randn(2, 6, generator=generator, dtype=torch.float64).mul(1.5).softmax(-1)
    guessed[3] = 0.0  # never guessed, and must still come
    guessed /= guessed.sum()
    assert distance(accept, own, guessed) < 0.005
    assert distance(keep_always, own, guessed) > 0.1
    assert distance(redraw_from_own, own, guessed) > 0.03


def test_a_guess_that_is_as_likely_as_the_model_says_is_always_kept() -> None:
    own = torch.tensor([[0.1, 0.2, 0.7]] * 3, dtype=torch.float64)
    numbers = torch.tensor([[1 - 1e-12, 0.5]] * 3, dtype=torch.float64)
    assert accept(own, own, torch.arange(3), numbers).tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.35)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def chances(folder: Path) -> dict[tuple[int, ...], float]:
    """The chance of every continuation of PROMPT, by transformers."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lines = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *line] for line in lines])).logits
    logs = logits.double().log_softmax(-1)[:, len(PROMPT) - 1 : -1]
    each = logs.gather(2, torch.tensor(lines)[:, :, None]).sum((1, 2)).exp()
    return dict(zip(lines, each.tolist(), strict=True))


def misfit(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square of the counts, in standard deviations above what chance gives; rare cells are one."""
    total = counts.total()
    cells = {line: (counts[line], chance * total) for line, chance in expected.items()}
    rare = [line for line, (_, due) in cells.items() if due < 5]
    kept = [pair for line, pair in cells.items() if line not in rare]
    kept.append((sum(cells[line][0] for line in rare), sum(cells[line][1] for line in rare)))
    square = sum((seen - due) ** 2 / due for seen, due in kept if due)
    freedom = len(kept) - 1
    return float((square - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize(
    ("speculate", "rule", "fits"),
    [
        ("ngram:2", accept, True),
        ("tree:{}:6:2", accept, True),
        ("draft:{}:2", accept, True),
        ("draft:{}:2", keep_always, False),
        ("draft:{}:2", redraw_from_own, False),
    ],
)
def test_unseeded_lines_are_distributed_as_the_model_says_unless_the_rule_is_wrong(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speculate: str,
    rule: Rule,
    fits: bool,
) -> None:
    numbers = itertools.count()

    def start(params: SamplingParams, prompt: list[int], branch: int = 0) -> Draws:
        return Draws(params, prompt, random=random.Random(next(numbers)))

    monkeypatch.setattr(Draws, "start", start)
    monkeypatch.setattr(engine.sampler, "accept", rule)
    llm = LLM(tiny, speculate=speculate.format(noisy_copy(tiny, tmp_path / "drafter", 0.7)))
    if isinstance(llm._proposer, ModelChain):
        llm._proposer._random = random.Random(0)
    params = SamplingParams(max_tokens=LENGTH, temperature=1.0, ignore_stop=True, n=64)
    counts = Counter(c.tokens for c in llm.generate([PROMPT] * 40, params))
    assert counts.total() == 2560
    found = misfit(counts, chances(tiny))
    assert found < 3.5 if fits else found > 10
    assert speculate == "ngram:2" or llm.scheduler.counters.accepted_tokens > 500
