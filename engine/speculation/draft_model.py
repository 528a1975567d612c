"""Guesses of a smaller model, which runs on a paged cache of its own through the engine's own parts.

A scheduler with shared prefixes is all the memory that it needs: each guess is a request for a few tokens, and
finds the keys of what was computed for the guess before under the digests of their blocks. What was guessed wrongly is
found by nobody and makes room in time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from ..batch import build_batch
from ..block_pool import BlockPool, Digest
from ..draft import NOTHING, Draft, chain
from ..model import Decoder
from ..sampler import distributions, pick
from ..scheduler import Scheduler
from ..sequence import Sequence as Line
from .proposer import Context
from .tree import Position, best_tree

BLOCK_SIZE = 4  # small: what is behind the last full block is computed again for each guess
TOKEN_BUDGET = 512

Choose = Callable[[list[int], torch.Tensor], list[int]]
"""From contexts' numbers and the logits [contexts, vocabulary] of their next positions to a token for each."""


class DraftModel:
    """A decoder that continues contexts by a few tokens, all of them in one batch."""

    def __init__(
        self, model: Decoder, plan_step: Callable[..., object], vocabulary: int, tokens: int, places: int
    ) -> None:
        """`vocabulary`: the other model's. Its cache holds `tokens` tokens; `places` contexts run at a time."""
        self._model, self._plan_step = model, plan_step
        self._vocabulary = vocabulary
        pool = BlockPool(max(1, tokens // BLOCK_SIZE))
        self._cache = model.new_cache(pool.num_blocks, BLOCK_SIZE)
        self._scheduler = Scheduler(pool, BLOCK_SIZE, TOKEN_BUDGET, places)
        self._digests: dict[tuple[int, int], list[Digest]] = {}

    def run(self, contexts: Sequence[Context], depth: int, choose: Choose) -> None:
        """Let `choose` choose up to `depth` tokens after each context, as far as that is shorter than both limits.

        A context for which the cache or the model's own context has no room, or that has a token which the model
        has no row for, is left out.
        """
        lines = [
            Line(number, list(context.tokens), min(depth, context.left))
            for number, context in enumerate(contexts)
        ]
        digests = self._digests
        self._digests = {}
        for context, line in zip(contexts, lines, strict=True):
            if self._has_room(line):
                line.digests = digests.get(context.key, [])
                self._scheduler.add(line)
        while self._scheduler.running or self._scheduler.waiting:
            self._step(choose)
        for context, line in zip(contexts, lines, strict=True):
            self._digests[context.key] = line.digests[: len(context.tokens) // BLOCK_SIZE]

    def _has_room(self, line: Line) -> bool:
        config, total = self._model.config, len(line.tokens) + line.max_tokens
        known = config.vocab_size >= self._vocabulary or max(line.tokens) < config.vocab_size
        return line.max_tokens > 0 and total <= min(config.context, self._scheduler.capacity) and known

    def _step(self, choose: Choose) -> None:
        step = self._scheduler.schedule()
        batch = build_batch(step, BLOCK_SIZE, self._plan_step)
        logits = self._model.forward(batch, self._cache)
        if logits.shape[1] < self._vocabulary:  # rows that only pad the other model's vocabulary
            missing = self._vocabulary - logits.shape[1]
            logits = torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
        sampled = [chunk.sequence.id for chunk in step.chunks if chunk.samples]
        chosen = choose(sampled, logits[:, : self._vocabulary]) if sampled else []
        self._scheduler.complete(step, [[token] for token in chosen])


class ModelChain:
    """Chains of a draft model: its likeliest tokens, or for lines that draw by chance what it draws by chance itself.

    Seeded lines get the likeliest, so that what they draw does not hang on what else was in the batch.
    """

    draws_trees = False

    def __init__(self, model: DraftModel, count: int, seed: int | None = None) -> None:
        """`count`: tokens to guess at a time. `seed` makes what is drawn by chance repeatable."""
        self._model, self._count = model, count
        self._random = random.Random(seed)

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """A chain for each context."""
        tokens: list[list[int]] = [[] for _ in contexts]
        chances: list[list[torch.Tensor]] = [[] for _ in contexts]

        def choose(numbers: list[int], logits: torch.Tensor) -> list[int]:
            chosen = logits.argmax(dim=-1)
            asked = [contexts[number].params for number in numbers]
            drawn = [row for row, each in enumerate(asked) if each.draws and each.seed is None]
            if drawn:
                own = distributions(logits[drawn], [asked[row] for row in drawn])
                places = torch.tensor([self._random.random() for _ in drawn], dtype=torch.float64)
                chosen[drawn] = pick(own, places.to(own.device))
                for row, each in zip(drawn, own, strict=True):
                    chances[numbers[row]].append(each)
            for number, token in zip(numbers, chosen.tolist(), strict=True):
                tokens[number].append(token)
            return [tokens[number][-1] for number in numbers]

        self._model.run(contexts, self._count, choose)
        return [
            chain(each, torch.stack(drawn_from) if drawn_from else None)
            for each, drawn_from in zip(tokens, chances, strict=True)
        ]


class ModelTree:
    """Trees around a draft model's likeliest tokens, from what it said of each position on the way."""

    draws_trees = True

    def __init__(self, model: DraftModel, nodes: int, depth: int) -> None:
        """`nodes`: of a tree. `depth`: of its deepest, which is how often the draft model runs for it."""
        self._model, self._nodes, self._depth = model, nodes, depth

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """A tree for each context."""
        positions: list[list[Position]] = [[] for _ in contexts]

        def choose(numbers: list[int], logits: torch.Tensor) -> list[int]:
            warmth = [[contexts[number].params.temperature or 1.0] for number in numbers]
            logs = (logits.to(torch.float32) / torch.tensor(warmth)).log_softmax(dim=-1)
            values, tokens = logs.topk(min(self._nodes, logs.shape[1]))
            for number, ids, chances in zip(numbers, tokens.tolist(), values.tolist(), strict=True):
                positions[number].append(list(zip(ids, chances, strict=True)))
            return [ids[0] for ids in tokens.tolist()]

        self._model.run(contexts, self._depth, choose)
        return [best_tree(each, self._nodes) if each else NOTHING for each in positions]
