"""What a request asks for: how its tokens are chosen, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hub_loader.errors import UsageError

MAX_LOGPROBS = 20
_COLDEST = 1e-3  # temperatures below are greedy: divided by them, logits leave the numbers


@dataclass(frozen=True)
class SamplingParams:
    """How a request chooses tokens and when it ends.

    temperature 0, or below 0.001, is greedy. What a draw may choose from is cut in this order: top_k likeliest tokens
    (0: all); the fewest likeliest whose probabilities sum to at least top_p; those at least min_p times as likely as
    the likeliest. Before that, repetition_penalty divides the logits of tokens seen in prompt or answer (and
    multiplies negative ones), frequency_penalty takes off that much for each time a token was generated,
    presence_penalty once, and logit_bias adds to single tokens.

    seed None draws differently each time. n: continuations of the prompt. logprobs: how many likeliest tokens
    to report with each token, beside its own; None: none. stop: texts that end a request, left out of its
    text. stop_tokens: further tokens that end it. ignore_stop: the model's own stop tokens do not.
    priority: smaller runs sooner. json_schema, regex: what the text has to match (one of them at most).
    show_special: special tokens are part of the text.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    ignore_stop: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    priority: int = 0
    json_schema: str | Mapping[str, object] | None = None
    regex: str | None = None
    show_special: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of range."""
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (every token) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "0.01 to 100"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2"),
            ("n", self.n >= 1, "at least 1"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
            (
                "stop",
                not isinstance(self.stop, str) and all(self.stop),
                "a tuple of texts, none of them empty",
            ),
            (
                "logit_bias",
                all(-100 <= v <= 100 for v in self.logit_bias.values()),
                "biases from -100 to 100",
            ),
        ):
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}, expected {expected}")
        if self.json_schema is not None and self.regex is not None:
            raise UsageError("json_schema and regex cannot both be given: choose one")

    @cached_property
    def draws(self) -> bool:
        """Whether tokens are drawn by chance; else the likeliest is taken."""
        return self.temperature >= _COLDEST

    @cached_property
    def guided(self) -> bool:
        """Whether the text has to match a schema or an expression."""
        return self.json_schema is not None or self.regex is not None

    @cached_property
    def shapes_logits(self) -> bool:
        """Whether logits change before anything is drawn from them."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or bool(self.logit_bias)
        )
