"""What a request draws from: the chances of tokens after temperature and cuts, and how a number picks one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .device import put
from .params import SamplingParams

_CANDIDATES = 1024  # sorted first; where they do not hold top_p, everything is sorted


def only_finite(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits with zeros in place of each row that is not finite; which rows are, bool [S], or None: all."""
    if not logits.is_cuda and math.isfinite(logits.sum()):  # one pass; only finite numbers have a finite sum
        return logits, None
    finite = logits.isfinite().all(dim=-1)
    return logits.masked_fill(~finite[:, None], 0.0), finite


def distributions(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """What requests with temperature above 0 draw from: float64 [S, vocabulary]."""
    chances, order = ranked(logits.to(torch.float32), params)
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


def pick_tokens(
    logits: torch.Tensor, params: Sequence[SamplingParams], numbers: torch.Tensor
) -> torch.Tensor:
    """Tokens int64 [S] for logits [S, vocabulary]: numbers float64 [S] in [0, 1) fall into the chances' sums.

    Rows that are not cut to their likeliest tokens are not sorted, whatever other rows are.
    """
    cut = [row for row, each in enumerate(params) if each.top_k or each.top_p < 1]
    if len(cut) == len(params):
        chances, order = ranked(logits, params)
        return order.gather(1, pick(chances.to(torch.float64), numbers)[:, None]).squeeze(1)
    if not cut:
        return pick(_uncut(logits, params).to(torch.float64), numbers)
    tokens = numbers.new_empty(len(params), dtype=torch.int64)
    for rows in (cut, sorted(set(range(len(params))) - set(cut))):
        index = put(torch.tensor(rows), logits.device)
        tokens[index] = pick_tokens(logits[index], [params[row] for row in rows], numbers[index])
    return tokens


def _uncut(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Chances [S, vocabulary] after temperature and min_p, for rows without top_k and top_p."""
    temperature = put(torch.tensor([each.temperature for each in params]), logits.device)
    chances = (logits / temperature[:, None]).softmax(dim=-1)
    if any(each.min_p for each in params):
        least = put(torch.tensor([each.min_p for each in params]), logits.device)
        chances = chances.masked_fill(chances < least[:, None] * chances.amax(dim=-1, keepdim=True), 0.0)
    return chances


def pick(chances: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Places int64 [S] where numbers [S] fall among the sums of chances [S, C], which need not add up to 1."""
    sums = chances.cumsum(dim=-1)
    places = torch.searchsorted(sums, (numbers * sums[:, -1])[:, None], right=True)
    # Rounding may lead past the end, or to a place of no chance behind the last that has one.
    last = (chances > 0).to(torch.int64).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    return torch.minimum(places, last).squeeze(1)


def ranked(logits: torch.Tensor, params: Sequence[SamplingParams]) -> tuple[torch.Tensor, torch.Tensor]:
    """Chances [S, C] after temperature and cuts, likeliest first, and the tokens [S, C] they belong to."""

    def column(values: list[float] | list[int]) -> torch.Tensor:
        return put(torch.tensor(values), logits.device)[:, None]

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
