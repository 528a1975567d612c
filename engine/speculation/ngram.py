"""Guesses without a model: what followed the last time that the text ended as it does now."""

from __future__ import annotations

from collections.abc import Sequence

from ..draft import Draft, chain
from .proposer import Context

SHORTEST, LONGEST = 2, 4


class NGram:
    """Looks up the longest end of LONGEST to SHORTEST tokens that occurred before, prompt and answer alike."""

    draws_trees = False

    def __init__(self, count: int) -> None:
        """`count`: tokens to guess at a time."""
        self._count = count
        self._known: dict[tuple[int, int], _Index] = {}

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """Chains of what followed the latest earlier occurrence; nothing where there is none."""
        self._known = {c.key: self._known.get(c.key) or _Index() for c in contexts}
        drafts = []
        for context in contexts:
            start = self._known[context.key].find(context.tokens)
            count = min(self._count, context.left)
            drafts.append(chain(context.tokens[start : start + count] if start else ()))
        return drafts


class _Index:
    """Where each run of tokens of a growing text ended last."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._length = 0

    def find(self, tokens: Sequence[int]) -> int:
        """The place after the latest earlier occurrence of the end of `tokens`; 0: none."""
        # The end itself is left out: it is what is looked for.
        for end in range(max(1, self._length), len(tokens)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[tuple(tokens[end - size : end])] = end
        self._length = len(tokens)
        ends = (tuple(tokens[-size:]) for size in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1))
        return next((self._after[end] for end in ends if end in self._after), 0)
