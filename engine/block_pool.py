"""Which blocks of the paged KV cache are free. Pure: numbers in, numbers out.

A block holds the keys and values of `block_size` consecutive tokens of one sequence; a sequence's block table
lists its blocks in order. Blocks need not be neighbours, so the only waste is the tail of the last one.
"""

from __future__ import annotations

from collections.abc import Iterable


def blocks_for(tokens: int, block_size: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // block_size)


class BlockPool:
    """Blocks 0 … num_blocks - 1, each free or owned by exactly one sequence."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Popped from the end: low numbers first, and a block just released is reused while still in cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._used: set[int] = set()

    @property
    def available(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks.

        Raises:
            ValueError: fewer are free; nothing is taken.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} of {self.num_blocks} are free")
        blocks = [self._free.pop() for _ in range(count)]
        self._used.update(blocks)
        return blocks

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: a block is not in use.
        """
        for block in blocks:
            if block not in self._used:
                raise ValueError(f"block {block} is released but not in use")
            self._used.remove(block)
            self._free.append(block)
