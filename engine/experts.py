"""A mixture of feed-forward networks: each token goes through the few that a router chooses for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional


class Mixture:
    """x [T, hidden] -> [T, hidden]: the sum of the chosen experts' answers, weighted by the router.

    Experts take their tokens one expert after the other, in order of their number, and each token adds its
    experts' answers in that order, so that the result does not depend on what else is in the batch.
    """

    def __init__(
        self,
        router: torch.Tensor,
        experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        per_token: int,
        normalized: bool,
    ) -> None:
        """router [experts, hidden]; normalized: the chosen experts' weights sum to 1."""
        self._router = router
        self._experts = experts
        self._per_token = per_token
        self._normalized = normalized

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scores = functional.linear(x, self._router).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = scores.topk(self._per_token, dim=-1)
        if self._normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(x.dtype)
        out = torch.zeros_like(x)
        for number in torch.unique(chosen).tolist():
            token, place = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, token, self._experts[number](x[token]) * weights[token, place, None])
        return out
