"""From logits to next tokens, for a whole batch at once.

Each request draws with random numbers of its own, one for each token, so its tokens depend neither on what
else is in the batch nor on how the batch was cut into steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from hub_loader.errors import ComputeError

from .params import SamplingParams

_CANDIDATES = 1024  # sorted first; where they do not hold top_p, everything is sorted


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


def sample(
    logits: torch.Tensor, draws: Sequence[Draws], guesses: Sequence[Guess | None] = ()
) -> list[Choice]:
    """The next token of each row of logits [S, vocabulary]; row i chooses by draws[i].

    Where guesses[i] is one (for no greedy row), its token is taken as often as the row's own chances allow. A row
    that is not finite, or of which a guide fails, fails its line alone: draws[i].failure says so.
    """
    wide = _finite(logits.to(torch.float32), draws)
    shaped = _shape(wide, draws)
    tokens = shaped.argmax(dim=-1)
    guessed = {row for row, guess in enumerate(guesses) if guess}
    drawn = [row for row, line in enumerate(draws) if line.params.draws and row not in guessed]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        numbers = torch.tensor([draws[row].random.random() for row in drawn], dtype=torch.float64)
        params = [draws[row].params for row in drawn]
        tokens[index] = _draw(shaped[index], params, numbers.to(logits.device))
    if guessed:
        _take_guesses(tokens, shaped, draws, {row: guess for row, guess in enumerate(guesses) if guess})
    chosen: list[int] = tokens.tolist()
    asked = [row for row, line in enumerate(draws) if line.params.logprobs is not None]
    reports = _logprobs(wide, chosen, asked, draws) if asked else {}
    return [reports.get(row) or Choice(token) for row, token in enumerate(chosen)]


def _finite(logits: torch.Tensor, draws: Sequence[Draws]) -> torch.Tensor:
    """The logits; zeros in place of each row that is not finite, whose line fails."""
    if math.isfinite(logits.sum()):  # one pass; only finite numbers have a finite sum
        return logits
    broken = ~logits.isfinite().all(dim=-1)
    for row in broken.nonzero().flatten().tolist():
        draws[row].failure = ComputeError("the logits are not finite")
    return logits.masked_fill(broken[:, None], 0.0)


def distributions(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """What requests with temperature above 0 draw from: float64 [S, vocabulary]."""
    chances, order = _chances(logits.to(torch.float32), params)
    return torch.zeros_like(logits, dtype=torch.float64).scatter(1, order, chances.to(torch.float64))


def accept(
    own: torch.Tensor, guessed: torch.Tensor, tokens: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Tokens int64 [S] that are distributed as `own`, given `tokens` that were drawn from `guessed`.

    own, guessed: float64 [S, vocabulary]; numbers: float64 [S, 2], independent and uniform in [0, 1). What was drawn is
    kept with the chance own / guessed, and else a token is drawn from what `own` has more of (rejection sampling,
    https://arxiv.org/abs/2211.17192).
    """
    places = tokens[:, None]
    kept = numbers[:, :1] * guessed.gather(1, places) < own.gather(1, places)
    more = (own - guessed).clamp_min(0)
    more = torch.where(more.sum(dim=-1, keepdim=True) > 0, more, own)  # equal but for rounding
    return torch.where(kept.squeeze(1), tokens, pick(more, numbers[:, 1]))


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
            biased = torch.tensor(list(params.logit_bias), device=logits.device)
            scores[biased] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
        if line.guide and line.failure is None:
            try:
                rejected = line.guide.rejected(len(scores)).to(logits.device)
            except Exception as error:  # whatever it raises, the other rows have nothing to do with it
                line.failure = error
            else:
                scores.masked_fill_(rejected, float("-inf"))
    return shaped


def _draw(logits: torch.Tensor, params: Sequence[SamplingParams], numbers: torch.Tensor) -> torch.Tensor:
    """Tokens int64 [S] for logits [S, vocabulary]: numbers float64 [S] in [0, 1) fall into the chances' sums."""
    chances, order = _chances(logits, params)
    return order.gather(1, pick(chances.to(torch.float64), numbers)[:, None]).squeeze(1)


def pick(chances: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Places int64 [S] where numbers [S] fall among the sums of chances [S, C], which need not add up to 1."""
    sums = chances.cumsum(dim=-1)
    places = torch.searchsorted(sums, (numbers * sums[:, -1])[:, None], right=True)
    # Rounding may lead past the end, or to a place of no chance behind the last that has one.
    last = (chances > 0).to(torch.int64).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    return torch.minimum(places, last).squeeze(1)


def _chances(logits: torch.Tensor, params: Sequence[SamplingParams]) -> tuple[torch.Tensor, torch.Tensor]:
    """Chances [S, C] after temperature and cuts, likeliest first, and the tokens [S, C] they belong to."""

    def column(values: list[float] | list[int]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    vocabulary = logits.shape[-1]
    scaled = logits / column([p.temperature for p in params])
    top_k = column([min(p.top_k or vocabulary, vocabulary) for p in params])
    top_p = column([p.top_p for p in params])
    min_p = column([p.min_p for p in params])
    cuts = any(p.top_p < 1 or p.top_k for p in params)
    width = min(vocabulary, max(_CANDIDATES, 2 * max(p.top_k for p in params))) if cuts else vocabulary
    everything = scaled.logsumexp(dim=-1, keepdim=True)
    while True:
        ordered, order = (
            scaled.topk(width) if width < vocabulary else scaled.sort(descending=True, stable=True)
        )
        kth = ordered.gather(1, (top_k - 1).clamp(max=width - 1))
        # Equally likely tokens at the end of the k are kept, as in transformers.
        kept = (ordered >= kth) | (top_k > width)
        ordered = ordered.masked_fill(~kept, float("-inf"))
        # What the k hold is all there is; without top_k, what lies beyond the candidates counts too.
        whole = torch.where(top_k < vocabulary, ordered.logsumexp(dim=-1, keepdim=True), everything)
        chances = (ordered - whole).exp()
        before = chances.cumsum(dim=-1) - chances
        enough = ((before[:, -1:] + chances[:, -1:] >= top_p) & (top_p < 1)) | (~kept[:, -1:])
        if width == vocabulary or bool(enough.all()):
            break
        width = vocabulary
    # Dropped: a token that the likelier ones already make up top_p without. The first always stays.
    dropped = (before >= top_p) & (top_p < 1)
    dropped[:, 0] = False
    dropped |= chances < min_p * chances[:, :1]
    chances = chances.masked_fill(dropped, 0.0)
    return chances / chances.sum(dim=-1, keepdim=True), order


def _logprobs(
    logits: torch.Tensor, chosen: Sequence[int], rows: Sequence[int], draws: Sequence[Draws]
) -> dict[int, Choice]:
    logs = logits[list(rows)].log_softmax(dim=-1)
    most = max(draws[row].params.logprobs or 0 for row in rows)
    values, tokens = logs.topk(most) if most else (logs[:, :0], logs[:, :0].long())
    reports = {}
    for place, row in enumerate(rows):
        count = draws[row].params.logprobs or 0
        top = zip(tokens[place, :count].tolist(), values[place, :count].tolist(), strict=True)
        reports[row] = Choice(chosen[row], float(logs[place, chosen[row]]), tuple(top))
    return reports
