"""Texts as vectors: what the last layer says of their tokens, pooled and brought to length 1.

The keys and values of a text are in a cache of its own while it is computed, a step's budget of tokens at a time,
so that an engine can go on generating in between.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Literal

import torch

from hub_loader.errors import ComputeError

from .batch import build_batch
from .block_pool import blocks_for
from .engine import LLM
from .failure import suspects
from .scheduler import Chunk, Step
from .sequence import Sequence as Line

Pooling = Literal["mean", "last"]


def embed(
    llm: LLM, prompts: Sequence[Sequence[int]], pooling: Pooling = "mean"
) -> Generator[None, None, torch.Tensor]:
    """Vectors float32 [prompts, hidden size] of length 1, as the generator's result; it yields between steps.

    prompts: token ids, each at least one and none longer than the model's context. pooling: the mean over a
    text's tokens, or the last one's vector.

    Raises:
        ComputeError: a vector is not finite.
    """
    pooled = []
    for group in _groups(prompts, llm.scheduler.token_budget):
        pooled.append((yield from _pool(llm, group, pooling)))
    vectors = torch.cat(pooled)
    if not vectors.isfinite().all():
        raise ComputeError(f"a text's vector is not finite: {suspects(llm.kernel_table)}")
    return torch.nn.functional.normalize(vectors, dim=-1)


def _groups(prompts: Sequence[Sequence[int]], budget: int) -> list[list[Sequence[int]]]:
    """Prompts in their order, as many together as a step can compute."""
    groups: list[list[Sequence[int]]] = []
    room = 0
    for prompt in prompts:
        if len(prompt) > room:
            groups.append([])
            room = budget
        groups[-1].append(prompt)
        room -= len(prompt)
    return groups


def _pool(llm: LLM, group: Sequence[Sequence[int]], pooling: Pooling) -> Generator[None, None, torch.Tensor]:
    """[group, hidden size]; only a group of one may be longer than the budget."""
    size, budget = llm.scheduler.block_size, llm.scheduler.token_budget
    lines, used = [], 0
    for number, prompt in enumerate(group):
        count = blocks_for(len(prompt), size)
        lines.append(Line(number, list(prompt), 1, blocks=list(range(used, used + count))))
        used += count
    cache = llm.model.new_cache(used, size)
    sums = [torch.zeros(llm.config.hidden_size)] * len(group)
    longest = max(map(len, group))
    for start in range(0, longest, budget):
        chunks = [Chunk(line, start, min(len(line.tokens), start + budget), False) for line in lines]
        batch = build_batch(Step(chunks), size, llm.kernels.plan_step)
        hidden = llm.model.hidden(batch, cache).to(torch.float32).cpu()
        parts = torch.split(hidden, [chunk.end - chunk.start for chunk in chunks])
        if pooling == "last":
            sums = [part[-1] for part in parts]
        else:
            sums = [total + part.sum(dim=0) for total, part in zip(sums, parts, strict=True)]
        yield
    lengths = torch.tensor([1 if pooling == "last" else len(prompt) for prompt in group])
    return torch.stack(sums) / lengths[:, None]
