"""The best tree that a number of nodes allows, from what a drafter says of each position alone. Pure.

As in DDTree (https://arxiv.org/abs/2604.12989): the chance of a line of guesses is taken to be the product of its
tokens' chances at their positions, whatever came before them. The nodes whose lines are likeliest are then found
one after another with a heap.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from ..draft import LAST, Draft

Position = Sequence[tuple[int, float]]
"""Tokens that may stand at a position, likeliest first, each with the logarithm of its chance."""


def best_tree(positions: Sequence[Position], nodes: int) -> Draft:
    """The likeliest token of each position, and beside that spine the likeliest other lines; `nodes` in all.

    The spine comes first, so that the tree never holds less than the chain of the same depth.
    """
    spine = min(nodes, len(positions))
    tokens = [position[0][0] for position in positions[:spine]]
    parents = list(range(LAST, spine - 1))
    # Lines that are not in the tree but whose beginning is: minus the line's log chance, a number that settles
    # ties, the node that it follows, its last token's position and rank there.
    heap: list[tuple[float, int, int, int, int]] = []
    before = 0.0
    for depth, position in enumerate(positions[:spine]):
        if len(position) > 1:
            heap.append((-(before + position[1][1]), depth, depth - 1, depth, 1))
        before += position[0][1]
    heapify(heap)
    made = spine
    while heap and len(tokens) < nodes:
        cost, _, parent, depth, rank = heappop(heap)
        node = len(tokens)
        tokens.append(positions[depth][rank][0])
        parents.append(parent)
        if rank + 1 < len(positions[depth]):
            sibling = cost + positions[depth][rank][1] - positions[depth][rank + 1][1]
            heappush(heap, (sibling, made, parent, depth, rank + 1))
        if depth + 1 < len(positions):
            heappush(heap, (cost - positions[depth + 1][0][1], made + 1, node, depth + 1, 0))
        made += 2
    return Draft(tuple(tokens), tuple(parents))
