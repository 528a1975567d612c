"""Tokens that are guessed to come next, as a tree. Pure: no tensors are made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LAST = -1
"""The parent of what may follow the last token."""


@dataclass(frozen=True)
class Draft:
    """Node i says that `tokens[i]` follows node `parents[i]`, which is before it, or the last token (-1).

    The first nodes of a tree are a tree again, so a draft is shortened from its end: the best come first.
    chances: of a chain whose tokens were drawn by chance, what each was drawn from: float64
    [nodes, vocabulary]. None: the guesses are not random, whatever the tokens that are drawn later.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    chances: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raises ValueError for a parent that does not come before its child."""
        if len(self.parents) != len(self.tokens) or any(
            not LAST <= p < i for i, p in enumerate(self.parents)
        ):
            raise ValueError(f"the parents {self.parents} make no tree of {len(self.tokens)} tokens")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether each node follows the one before it, as tokens that are no draft do."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @property
    def depths(self) -> list[int]:
        """How many tokens after the last one each node is: 1 for its children."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == LAST else depths[parent] + 1)
        return depths

    def cut(self, nodes: int, depth: int) -> Draft:
        """The first `nodes` nodes at most, and none from the first on that is deeper than `depth`."""
        deep = next((node for node, d in enumerate(self.depths) if d > depth), len(self))
        kept = max(0, min(nodes, deep))
        return self if kept == len(self) else Draft(self.tokens[:kept], self.parents[:kept], self.chances)

    def child(self, node: int, token: int) -> int | None:
        """The node that says `token` after `node`, or None."""
        for candidate in range(node + 1, len(self)):
            if self.parents[candidate] == node and self.tokens[candidate] == token:
                return candidate
        return None


def chain(tokens: Sequence[int], chances: Any = None) -> Draft:
    """A draft of tokens one after another."""
    return Draft(tuple(tokens), tuple(range(LAST, len(tokens) - 1)), chances)


NOTHING = Draft()
