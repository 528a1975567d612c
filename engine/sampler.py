"""From logits to the next token: greedy, or drawn with temperature, top-k and top-p.

A request draws from a generator of its own, so its tokens do not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hub_loader.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How a request chooses tokens and when it ends.

    temperature 0 is greedy; top_k 0 keeps every token; top_p keeps the fewest likeliest tokens whose
    probabilities sum to at least it. seed None draws differently each time. ignore_stop runs to max_tokens.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    ignore_stop: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range."""
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (every token) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}, expected {expected}")

    def generator(self) -> torch.Generator | None:
        """A fresh random generator for a request; None when greedy needs none."""
        if self.temperature == 0:
            return None
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(
    logits: torch.Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator | None]
) -> list[int]:
    """One token id for each row of logits [S, vocabulary]; row i uses params[i] and generators[i]."""
    greedy: list[int] = logits.argmax(dim=-1).tolist()
    return [
        token if generator is None else _draw(row, chosen, generator)
        for token, row, chosen, generator in zip(greedy, logits, params, generators, strict=True)
    ]


def probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution [vocabulary] that a request with temperature above 0 draws from, float32.

    In transformers' order: temperature, then top-k, then top-p over what is left.
    """
    scaled = logits.to(torch.float32) / params.temperature
    if 0 < params.top_k < len(scaled):
        threshold = scaled.topk(params.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < threshold, float("-inf"))
    chances = scaled.softmax(dim=-1)
    if params.top_p < 1:
        ordered, order = chances.sort(descending=True, stable=True)
        # Dropped: a token that the likelier ones already make up top_p without. The first always stays.
        dropped = ordered.cumsum(dim=-1) - ordered >= params.top_p
        chances = chances.masked_fill(torch.zeros_like(dropped).scatter(0, order, dropped), 0.0)
        chances = chances / chances.sum()
    return chances


def _draw(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    return int(torch.multinomial(probabilities(logits, params).cpu(), 1, generator=generator))
