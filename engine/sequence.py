"""One line of tokens that the engine makes longer, and where its keys and values are."""

from __future__ import annotations

from dataclasses import dataclass, field

from .block_pool import Digest
from .draft import NOTHING, Draft

AGING_STEPS = 1000
"""A level of priority is worth this many steps of waiting, so that nobody waits for ever."""


@dataclass(eq=False)
class Sequence:
    """A request's tokens. The scheduler owns everything from `computed` on.

    priority: smaller runs sooner. branches: how many continuations to draw after the prompt; the scheduler
    makes the others when the first token is drawn, and `branch` numbers them. draft: tokens that are guessed
    to come next, computed in the next step along with the last one if there is room. sealed: how many of its
    blocks answer to their digests. cached: how many tokens were in the cache when it first ran.
    """

    id: int
    tokens: list[int]
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    priority: int = 0
    branches: int = 1
    branch: int = 0
    draft: Draft = NOTHING
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    host_blocks: list[int] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    sealed: int = 0
    arrival: int = 0
    prompt_length: int = -1
    ended: str | None = None
    cached: int | None = None

    def __post_init__(self) -> None:
        if self.prompt_length < 0:
            self.prompt_length = len(self.tokens)

    @property
    def key(self) -> tuple[int, int, int]:
        """Who runs first: a total order that never changes."""
        return (self.arrival + self.priority * AGING_STEPS, self.id, self.branch)

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def finish_reason(self) -> str | None:
        """ "stop" after a stop token, "length" after max_tokens, "error", what `end` said, None while running."""
        if self.ended:
            return self.ended
        generated = len(self.tokens) - self.prompt_length
        if generated and self.tokens[-1] in self.stop_tokens:
            return "stop"
        return "length" if generated >= self.max_tokens else None

    def fork(self, branch: int, token: int) -> Sequence:
        """Another continuation of the same prompt, whose first token is `token`; it has no blocks yet."""
        tokens = [*self.tokens[: self.prompt_length], token]
        return Sequence(
            self.id,
            tokens,
            self.max_tokens,
            self.stop_tokens,
            self.priority,
            branch=branch,
            arrival=self.arrival,
            prompt_length=self.prompt_length,
            cached=self.cached,
        )
