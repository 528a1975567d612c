"""What a request is to its sender: a continuation under way, its draws, its text."""

from __future__ import annotations

from dataclasses import dataclass, field

from .output import TextStream
from .sampler import Choice, Draws
from .sequence import Sequence


@dataclass
class Line:
    """One continuation under way; before their first token, those of one request share a sequence."""

    request_id: int
    index: int
    sequence: Sequence
    draws: Draws
    text: TextStream
    choices: list[Choice] = field(default_factory=list)
    piece: str = ""
    fresh: list[Choice] = field(default_factory=list)

    def take(self, choice: Choice) -> bool:
        """Take a drawn token into the text; whether another may follow."""
        params, guide = self.draws.params, self.draws.guide
        self.fresh.append(choice)
        if params.logprobs is not None:
            self.choices.append(choice)
        self.draws.generated.append(choice.token)
        if choice.token in self.sequence.stop_tokens:
            return False
        self.piece += self.text.push(choice.token)
        if guide:
            guide.advance(choice.token)
        return not self.said_all and len(self.draws.generated) < params.max_tokens

    @property
    def said_all(self) -> bool:
        """Whether its text or its guide ends it."""
        return self.text.stopped or bool(self.draws.guide and self.draws.guide.done)
