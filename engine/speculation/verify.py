"""How far a step's drafts were right.

Each line draws its tokens as it would without a draft, from logits that were computed for every token it might
draw: as long as what it draws is a node of its draft, the logits after that node are there too, and it draws once
more in the same step. So a line with a seed, or a greedy one, gets the very tokens that it gets without
speculation. Where a draft's tokens were themselves drawn by chance, rejection sampling takes more of them, and the
tokens have the same distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from ..draft import LAST, NOTHING, Draft
from ..sampler import Choice, Draws, Guess, sample


@dataclass
class Walk:
    """A line's way from its last token, whose logits are in row `row`, through its draft, in the rows behind.

    take: what the line does with a token; it says whether another may follow. choices: the tokens so far. path:
    those nodes of the draft that came to be.
    """

    draws: Draws
    row: int
    take: Callable[[Choice], bool]
    draft: Draft = NOTHING
    choices: list[Choice] = field(default_factory=list)
    path: list[int] = field(default_factory=list)

    @property
    def node(self) -> int:
        """The node that the next token follows."""
        return self.path[-1] if self.path else LAST

    @property
    def guess(self) -> Guess | None:
        """The next token, if the draft's chain was drawn by chance and goes on."""
        following = self.node + 1
        if self.draft.chances is None or following == len(self.draft):
            return None
        return Guess(self.draft.tokens[following], self.draft.chances[following])

    def follow(self, choice: Choice) -> bool:
        """Take the token that was drawn; whether the draft says so too and the line goes on."""
        self.choices.append(choice)
        if not self._taken(choice) or self.draft is NOTHING:
            return False
        node = self.draft.child(self.node, choice.token)
        if node is None:
            return False
        self.path.append(node)
        return True

    def _taken(self, choice: Choice) -> bool:
        """Whether the line goes on behind the token."""
        if self.draws.failure is None:
            try:
                return self.take(choice)
            except (
                Exception
            ) as error:  # its text's or its guide's: the other lines have nothing to do with it
                self.draws.failure = error
        return False


def verify(logits: torch.Tensor, walks: Iterable[Walk]) -> None:
    """Draw all lines' tokens, one level of their drafts after another; logits [rows, vocabulary]."""
    walking = list(walks)
    while walking:
        draws = [walk.draws for walk in walking]
        if len(walking) == len(logits) and all(walk.draft is NOTHING for walk in walking):
            choices = sample(logits, draws)
        else:
            rows = [walk.row + walk.node + 1 for walk in walking]
            choices = sample(logits[rows], draws, [walk.guess for walk in walking])
        walking = [walk for walk, choice in zip(walking, choices, strict=True) if walk.follow(choice)]
