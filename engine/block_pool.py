"""Which blocks of the paged KV cache are free, and which hold a prefix worth keeping. Pure: no tensors.

A block holds the keys and values of `block_size` consecutive tokens; a sequence's block table lists its
blocks in order. Blocks need not be neighbours, so the only waste is the tail of the last one.

A full block is *sealed* under the digest of all tokens up to its end. Sequences that begin alike then share
it; each holder counts. When the last one lets go, the block keeps its content and stays findable until the
room is needed: the one unused for longest goes first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

Digest = bytes
"""128 bits that stand for a block's tokens and all before it; wide enough never to collide."""


def blocks_for(tokens: int, block_size: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // block_size)


def extend_digests(digests: list[Digest], tokens: Sequence[int], block_size: int) -> None:
    """Append the digests of the full blocks of `tokens` that `digests`, made of a shorter list, lacks."""
    for start in range(len(digests) * block_size, len(tokens) - block_size + 1, block_size):
        chained = digests[-1] if digests else b""
        content = array("q", tokens[start : start + block_size]).tobytes()
        digests.append(hashlib.blake2b(chained + content, digest_size=16).digest())


class BlockPool:
    """Blocks 0 … num_blocks - 1, each free, held by one or more sequences, or kept for who begins alike."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Popped from the end: low numbers first, and a block just released is reused while still in cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # sealed and held by nobody, oldest first
        self._digest_of: dict[int, Digest] = {}
        self._sealed: dict[Digest, int] = {}

    @property
    def available(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free) + len(self._kept)

    @property
    def held(self) -> int:
        """How many blocks somebody holds."""
        return len(self._holders)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks that nobody holds; kept content is forgotten only when the free ones are used up.

        Raises:
            ValueError: fewer are available; nothing is taken.
        """
        if count > self.available:
            raise ValueError(f"{count} blocks asked for, {self.available} of {self.num_blocks} are free")
        blocks = [self._free.pop() if self._free else self._forget_oldest() for _ in range(count)]
        self._holders.update(dict.fromkeys(blocks, 1))
        return blocks

    def find(self, digests: Iterable[Digest]) -> list[int]:
        """The blocks that hold the longest known beginning of `digests`; take them with `share`."""
        found = []
        for digest in digests:
            block = self._sealed.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each of the blocks, which are held or kept.

        Raises:
            ValueError: a block is neither.
        """
        for block in blocks:
            if block not in self._holders and block not in self._kept:
                raise ValueError(f"block {block} is shared but holds nothing")
            self._kept.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def shared(self, block: int) -> bool:
        """Whether more than one sequence holds the block, so that nobody may write to it."""
        return self._holders.get(block, 0) > 1

    def seal(self, block: int, digest: Digest) -> None:
        """The held block is full and final; it answers to `digest` unless another block does already."""
        if self._sealed.setdefault(digest, block) == block:
            self._digest_of[block] = digest

    def forget(self, digests: Iterable[Digest]) -> None:
        """No block answers to any of the digests any more: what is there is not to be shared."""
        for block in [self._sealed.pop(digest) for digest in digests if digest in self._sealed]:
            del self._digest_of[block]
            if block in self._kept:
                del self._kept[block]
                self._free.append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each; of a table that nobody holds any more, the end is forgotten first.

        Raises:
            ValueError: a block is not in use.
        """
        for block in reversed(blocks):
            if block not in self._holders:
                raise ValueError(f"block {block} is released but not in use")
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._digest_of:
                self._kept[block] = None
            else:
                self._free.append(block)

    def _forget_oldest(self) -> int:
        block, _ = self._kept.popitem(last=False)
        del self._sealed[self._digest_of.pop(block)]
        return block
