"""From logits to next tokens, for a whole batch at once.

Each request draws with random numbers of its own, one for each token, so its tokens depend neither on what
else is in the batch nor on how the batch was cut into steps.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch

from hub_loader.errors import ComputeError

from .chances import accept, distributions, only_finite, pick_tokens
from .device import Readback, put
from .params import SamplingParams


class Guide(Protocol):
    """What a request's text has to match, as far as it got; `rejected` has True where a token may not come."""

    def rejected(self, vocabulary: int) -> torch.Tensor: ...

    def advance(self, token: int) -> None: ...

    @property
    def done(self) -> bool: ...


@dataclass
class Draws:
    """One line's choices: its parameters, its random numbers, its tokens so far.

    failure: why nothing more can be drawn; whatever was drawn for it last means nothing.
    """

    params: SamplingParams
    prompt: Sequence[int]
    generated: list[int] = field(default_factory=list)
    random: random.Random = field(default_factory=random.Random)
    guide: Guide | None = None
    failure: Exception | None = None

    @classmethod
    def start(cls, params: SamplingParams, prompt: Sequence[int], branch: int = 0) -> Draws:
        """A line that has drawn nothing; branches of one seeded request draw differently."""
        seed = None if params.seed is None else f"{params.seed}/{branch}"
        return cls(params, prompt, random=random.Random(seed))


@dataclass(frozen=True)
class Guess:
    """A token that was drawn beforehand, from the chances float64 [vocabulary]."""

    token: int
    chances: torch.Tensor


@dataclass(frozen=True)
class Choice:
    """A token, the log of its probability, and the likeliest tokens with theirs (if they were asked for).

    Probabilities are the model's own: before penalties, temperature and cuts.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


_plain = lru_cache(maxsize=1 << 16)(Choice)  # most tokens are said again and again


class Drawn:
    """What was drawn for a batch, which the device may be about to draw still.

    tokens: int64 [S], of logits float32 [S, vocabulary]. asked: the rows whose log probabilities are wanted, and with
    how many of the likeliest. finite: bool [S], the rows whose tokens mean something; None: all.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor,
        draws: Sequence[Draws],
        asked: Sequence[tuple[int, int]],
        finite: torch.Tensor | None,
    ) -> None:
        self.tokens = tokens
        self._draws, self._asked = draws, asked
        report = []
        if asked:
            rows = put(torch.tensor([row for row, _ in asked]), tokens.device)
            logs = logits[rows].log_softmax(dim=-1)
            report = [logs.gather(1, tokens[rows, None]), *logs.topk(max(count for _, count in asked))]
        self._readback = Readback(tokens, *([] if finite is None else [finite]), *report)
        self._sure = finite is None

    def choices(self) -> list[Choice]:
        """One for each row, and a failure for the line of each that is not finite; waits for the device."""
        tokens, *report = self._readback.lists()
        for row, finite in enumerate(() if self._sure else report.pop(0)):
            if not finite:
                self._draws[row].failure = ComputeError("the logits are not finite")
        choices = [_plain(token) for token in tokens]
        for (row, count), own, values, likely in zip(self._asked, *(report or ((),) * 3), strict=True):
            top = tuple(zip(likely[:count], values[:count], strict=True))
            choices[row] = Choice(tokens[row], own[0], top)
        return choices


def sample(
    logits: torch.Tensor, draws: Sequence[Draws], guesses: Sequence[Guess | None] = ()
) -> list[Choice]:
    """As `draw`, on the host; draws[i].failure says of a row that is not finite that it is not."""
    return draw(logits, draws, guesses).choices()


def draw(logits: torch.Tensor, draws: Sequence[Draws], guesses: Sequence[Guess | None] = ()) -> Drawn:
    """The next token of each row of logits [S, vocabulary]; row i chooses by draws[i].

    Where guesses[i] is one (for no greedy row), its token is taken as often as the row's own chances allow. A row
    of which a guide fails fails its line alone: draws[i].failure says so; of a row that is not finite, when it is read.
    """
    wide, finite = only_finite(logits.to(torch.float32))
    shaped = _shape(wide, draws)
    tokens = shaped.argmax(dim=-1)
    guessed = {row for row, guess in enumerate(guesses) if guess}
    drawn = [row for row, line in enumerate(draws) if line.params.draws and row not in guessed]
    if drawn:
        numbers = torch.tensor([draws[row].random.random() for row in drawn], dtype=torch.float64)
        numbers, index = put(numbers, logits.device), put(torch.tensor(drawn), logits.device)
        params = [draws[row].params for row in drawn]
        tokens[index] = pick_tokens(shaped if len(drawn) == len(draws) else shaped[index], params, numbers)
    if guessed:
        _take_guesses(tokens, shaped, draws, {row: guess for row, guess in enumerate(guesses) if guess})
    asked = [(row, wish) for row, line in enumerate(draws) if (wish := line.params.logprobs) is not None]
    return Drawn(tokens, wide, draws, asked, finite)


def _take_guesses(
    tokens: torch.Tensor, shaped: torch.Tensor, draws: Sequence[Draws], guesses: Mapping[int, Guess]
) -> None:
    """Put what becomes of the guesses, by row, into tokens [S]."""
    rows = list(guesses)
    own = distributions(shaped[rows], [draws[row].params for row in rows])
    numbers = [[draws[row].random.random(), draws[row].random.random()] for row in rows]
    tokens[rows] = accept(
        own,
        torch.stack([guess.chances for guess in guesses.values()]),
        torch.tensor([guess.token for guess in guesses.values()], device=own.device),
        torch.tensor(numbers, dtype=torch.float64, device=own.device),
    )


def _shape(logits: torch.Tensor, draws: Sequence[Draws]) -> torch.Tensor:
    """Logits after penalties, biases and guides; the very tensor if no row asks for any."""
    rows = [row for row, line in enumerate(draws) if line.params.shapes_logits or line.guide]
    if not rows:
        return logits
    shaped = logits.clone()
    for row in rows:
        line, params, scores = draws[row], draws[row].params, shaped[row]
        if params.repetition_penalty != 1:
            seen = torch.unique(torch.tensor([*line.prompt, *line.generated], device=logits.device))
            found = scores[seen]
            penalty = params.repetition_penalty
            scores[seen] = torch.where(found > 0, found / penalty, found * penalty)
        if line.generated and (params.presence_penalty or params.frequency_penalty):
            generated = torch.tensor(line.generated, device=logits.device)
            tokens, counts = torch.unique(generated, return_counts=True)
            scores[tokens] -= params.presence_penalty + params.frequency_penalty * counts
        if params.logit_bias:
            biased = put(torch.tensor(list(params.logit_bias)), logits.device)
            scores[biased] += put(torch.tensor(list(params.logit_bias.values())), logits.device)
        if line.guide and line.failure is None:
            try:
                rejected = line.guide.rejected(len(scores)).to(logits.device)
            except Exception as error:  # whatever it raises, the other rows have nothing to do with it
                line.failure = error
            else:
                scores.masked_fill_(rejected, float("-inf"))
    return shaped
