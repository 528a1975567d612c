"""Drafts in a step's tensors: which row is which token, where it stands in its text, and what it may see.

A draft lies in the cache after its sequence's tokens, node after node. For attention a chain is like any other
tokens. In a tree, a node must not see its siblings' lines, which is what the tree mask says, and stands as many
places after the last token as it is deep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from ..batch import Batch
from ..draft import LAST, Draft
from ..model import KVCache
from ..scheduler import Chunk, Step

WORD = 32


def with_drafts(batch: Batch, step: Step) -> Batch:
    """The batch of a step whose drafts were laid out as if they were chains of tokens."""
    positions = batch.positions
    rows: list[int] = []
    trees: list[tuple[int, Chunk]] = []
    start = 0
    for chunk in step.chunks:
        end = start + chunk.end - chunk.start + len(chunk.draft)
        if chunk.samples:
            rows += range(end - len(chunk.draft) - 1, end)
        if not chunk.draft.is_chain:
            trees.append((end - len(chunk.draft), chunk))
        start = end
    if trees:
        positions = positions.clone()
        for first, chunk in trees:
            depths = torch.tensor(chunk.draft.depths)
            positions[first : first + len(depths)] = chunk.end - 1 + depths
    return replace(
        batch,
        positions=positions,
        sample_rows=torch.tensor(rows),
        tree_mask=_tree_mask(len(positions), trees),
    )


def _tree_mask(rows: int, trees: Sequence[tuple[int, Chunk]]) -> torch.Tensor | None:
    """Int32 [rows, W] for trees whose nodes begin at the given rows; None where there is no tree.

    Bit b of word w says whether a row may see its sequence's token number w * 32 + b of the last 32 * W. All bits
    are set but those of a tree's nodes: causality and everything before are the kernel's own.
    """
    if not trees:
        return None
    words = -(-max(len(chunk.draft) for _, chunk in trees) // WORD)
    mask = torch.full((rows, words), -1, dtype=torch.int32)
    for first, chunk in trees:
        seen = torch.ones(len(chunk.draft), words * WORD, dtype=torch.int64)
        seen[:, -len(chunk.draft) :] = _ancestors(chunk.draft)
        bits = (seen.view(len(seen), words, WORD) << torch.arange(WORD)).sum(-1)
        mask[first : first + len(seen)] = bits.to(torch.uint32).view(torch.int32)
    return mask


def _ancestors(draft: Draft) -> torch.Tensor:
    """Int64 [nodes, nodes]: 1 where the column's node is the row's or comes before it on its line."""
    seen = torch.eye(len(draft), dtype=torch.int64)
    for node, parent in enumerate(draft.parents):
        if parent != LAST:
            seen[node] += seen[parent]
    return seen


def moves(chunk: Chunk, path: Sequence[int], block_size: int) -> list[tuple[int, int]]:
    """The slots to copy from and to, so that the accepted nodes lie where tokens that are no draft would."""

    def slot(position: int) -> int:
        block, offset = divmod(position, block_size)
        return chunk.sequence.blocks[block] * block_size + offset

    return [
        (slot(chunk.end + node), slot(chunk.end + place)) for place, node in enumerate(path) if node != place
    ]


def compact(cache: KVCache, accepted: Iterable[tuple[Chunk, Sequence[int]]], block_size: int) -> None:
    """Move the keys and values of chunks' accepted nodes to where those of tokens that are no draft would be."""
    pairs = [pair for chunk, path in accepted for pair in moves(chunk, path, block_size)]
    if not pairs:
        return
    sources, targets = (torch.tensor(slots) for slots in zip(*pairs, strict=True))
    for held in (tensor for layer in cache for tensor in layer):
        flat = held.view(-1, *held.shape[2:])
        flat[targets.to(held.device)] = flat[sources.to(held.device)]
