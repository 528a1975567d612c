"""What an engine has done since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What has happened since the start, in tokens and sequences.

    turns: how often a sequence was drawn for. guesses: those of them with a draft. accepted_tokens: those of drafts
    that came to be.
    """

    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    generated_tokens: int = 0
    turns: int = 0
    guesses: int = 0
    accepted_tokens: int = 0

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a sequence gets each time it is drawn for: 1 without speculation."""
        return self.generated_tokens / self.turns if self.turns else 0.0

    @property
    def acceptance_length(self) -> float:
        """How many tokens of a draft come to be, on average over the drafts that were computed."""
        return self.accepted_tokens / self.guesses if self.guesses else 0.0
