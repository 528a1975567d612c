"""Guesses of a smaller model, which runs on a paged cache of its own through the engine's own parts.

A scheduler with shared prefixes is all the memory that it needs: each guess is a request for a few tokens, and
finds the keys of what was computed for the guess before under the digests of their blocks. What was guessed wrongly is
found by nobody and makes room in time. The cache is as large as that needs, up to as many tokens as the model's own:
lines for which it has no room get no guesses until others have ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import torch

from ..batch import build_batch
from ..block_pool import BlockPool, Digest, blocks_for, extend_digests
from ..chances import distributions, pick
from ..draft import NOTHING, Draft, chain
from ..model import Decoder, KVCache
from ..scheduler import Scheduler
from ..sequence import Sequence as Line
from .proposer import Context
from .tree import Position, best_tree

BLOCK_SIZE = 4  # small: what is behind the last full block is computed again for each guess
TOKEN_BUDGET = 512
CHANCES_BYTES = 128 << 20  # of what all lines' guesses were drawn from, at a time

Choose = Callable[[list[int], torch.Tensor], list[int]]
"""From contexts' numbers and the logits [contexts, vocabulary] of their next positions to a token for each."""


class DraftModel:
    """A decoder that continues contexts by a few tokens, all of them in one batch."""

    def __init__(
        self, model: Decoder, plan_step: Callable[..., object], vocabulary: int, tokens: int, places: int
    ) -> None:
        """`vocabulary`: the other model's. `places` contexts run at a time.

        Its cache grows with what contexts need, and never beyond `tokens` tokens.
        """
        self._model, self._plan_step = model, plan_step
        self.vocabulary, self._places = vocabulary, places
        self._most_blocks = max(1, tokens // BLOCK_SIZE)
        self._digests: dict[tuple[int, int], list[Digest]] = {}
        self._make_cache(1)

    def run(self, contexts: Sequence[Context], depth: int, choose: Choose) -> None:
        """Let `choose` choose up to `depth` tokens after each context, as far as that is shorter than both limits.

        A context for which the cache or the model's own context has no room, or that has a token which the model
        has no row for, is left out.
        """
        lines = [
            Line(
                number,
                list(context.tokens),
                min(depth, context.left),
                digests=[*self._digests.get(context.key, ())],
            )
            for number, context in enumerate(contexts)
        ]
        fitting, blocks = self._fitting(lines)
        if blocks > self._scheduler.pool.num_blocks:
            self._make_cache(min(2 * blocks, self._most_blocks))
        for line in fitting:
            self._scheduler.add(line)
        try:
            while self._scheduler.running or self._scheduler.waiting:
                self._step(choose)
        except BaseException:
            self._make_cache(1)  # its lines would be among those of the next run
            raise
        self._digests = {
            context.key: line.digests[: len(context.tokens) // BLOCK_SIZE]
            for context, line in zip(contexts, lines, strict=True)
        }

    def _fitting(self, lines: Iterable[Line]) -> tuple[list[Line], int]:
        """The first lines that the largest cache holds together, so that none drives out another's; their blocks."""
        fitting, shared, own = [], set[Digest](), 0
        for line in lines:
            if not self._knows(line):
                continue
            extend_digests(line.digests, line.tokens, BLOCK_SIZE)
            more = blocks_for(len(line.tokens) + line.max_tokens, BLOCK_SIZE) - len(line.digests)
            if len(shared.union(line.digests)) + own + more <= self._most_blocks:
                fitting.append(line)
                shared.update(line.digests)
                own += more
        return fitting, len(shared) + own

    def _knows(self, line: Line) -> bool:
        """Whether the model can guess after the line at all."""
        config = self._model.config
        known = config.vocab_size >= self.vocabulary or max(line.tokens) < config.vocab_size
        return line.max_tokens > 0 and len(line.tokens) + line.max_tokens <= config.context and known

    def _make_cache(self, blocks: int) -> None:
        """An empty cache in place of the one before, which is given back first."""
        self._cache: KVCache = []
        self._cache = self._model.new_cache(blocks, BLOCK_SIZE)
        self._scheduler = Scheduler(BlockPool(blocks), BLOCK_SIZE, TOKEN_BUDGET, self._places)

    def _step(self, choose: Choose) -> None:
        step = self._scheduler.schedule()
        batch = build_batch(step, BLOCK_SIZE, self._plan_step)
        logits = self._model.forward(batch, self._cache)
        if logits.shape[1] < self.vocabulary:  # rows that only pad the other model's vocabulary
            missing = self.vocabulary - logits.shape[1]
            logits = torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))
        sampled = [chunk.sequence.id for chunk in step.chunks if chunk.samples]
        chosen = choose(sampled, logits[:, : self.vocabulary]) if sampled else []
        self._scheduler.complete(step, [[token] for token in chosen])


class ModelChain:
    """Chains of a draft model: its likeliest tokens, or for lines that draw by chance what it draws by chance itself.

    Seeded lines get the likeliest, so that what they draw does not hang on what else was in the batch; and so do lines
    for whose chances, which have to be kept for each token, there is no room.
    """

    draws_trees = False

    def __init__(
        self, model: DraftModel, count: int, seed: int | None = None, most_bytes: int = CHANCES_BYTES
    ) -> None:
        """`count`: tokens to guess at a time. `seed` makes what is drawn by chance repeatable.

        most_bytes: what the chances of all lines together may take.
        """
        self._model, self._count = model, count
        self._random = random.Random(seed)
        self._most_lines = most_bytes // max(1, 8 * model.vocabulary * count)

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """A chain for each context."""
        tokens: list[list[int]] = [[] for _ in contexts]
        by_chance = [n for n, each in enumerate(contexts) if each.params.draws and each.params.seed is None]
        drawing = frozenset(by_chance[: self._most_lines])
        kept: dict[int, torch.Tensor] = {}

        def choose(numbers: list[int], logits: torch.Tensor) -> list[int]:
            chosen = logits.argmax(dim=-1)
            drawn = [row for row, number in enumerate(numbers) if number in drawing]
            if drawn:
                own = distributions(logits[drawn], [contexts[numbers[row]].params for row in drawn])
                places = torch.tensor([self._random.random() for _ in drawn], dtype=torch.float64)
                chosen[drawn] = pick(own, places.to(own.device))
                for row, each in zip(drawn, own, strict=True):
                    number = numbers[row]
                    if number not in kept:
                        kept[number] = own.new_empty(self._count, own.shape[1])
                    kept[number][len(tokens[number])] = each
            for number, token in zip(numbers, chosen.tolist(), strict=True):
                tokens[number].append(token)
            return [tokens[number][-1] for number in numbers]

        self._model.run(contexts, self._count, choose)
        return [
            chain(each, kept[number][: len(each)] if number in kept else None)
            for number, each in enumerate(tokens)
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
            asked = [contexts[number].params for number in numbers]
            warmth = [[each.temperature if each.draws else 1.0] for each in asked]
            logs = (logits.to(torch.float32) / torch.tensor(warmth, device=logits.device)).log_softmax(dim=-1)
            values, tokens = logs.topk(min(self._nodes, logs.shape[1]))
            for number, ids, chances in zip(numbers, tokens.tolist(), values.tolist(), strict=True):
                positions[number].append(list(zip(ids, chances, strict=True)))
            return [ids[0] for ids in tokens.tolist()]

        self._model.run(contexts, self._depth, choose)
        return [best_tree(each, self._nodes) if each else NOTHING for each in positions]
