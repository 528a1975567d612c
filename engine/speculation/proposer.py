"""The one interface of everything that guesses tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..draft import Draft
from ..params import SamplingParams


@dataclass(frozen=True)
class Context:
    """A line that is to be guessed on: what it is called, all its tokens, how it chooses.

    left: how many tokens a draft may lead on, so that at least one more follows.
    """

    key: tuple[int, int]
    tokens: Sequence[int]
    params: SamplingParams
    left: int


class Proposer(Protocol):
    """Guesses what comes next; what it guesses never changes what is generated, only how soon."""

    @property
    def draws_trees(self) -> bool:
        """Whether a draft may branch: attention then has to know tree masks."""

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """A draft for each of the contexts, which are those of all lines that may be guessed on now."""
