import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block_pool import BlockPool, blocks_for


@given(tokens=st.integers(0, 10_000), block_size=st.integers(1, 256))
def test_blocks_for_any_tokens_is_the_fewest_that_hold_them(tokens: int, block_size: int) -> None:
    blocks = blocks_for(tokens, block_size)
    assert (blocks - 1) * block_size < tokens <= blocks * block_size or tokens == blocks == 0


@given(num_blocks=st.integers(0, 40), data=st.data())
def test_pool_after_any_allocations_and_releases_owns_each_block_once(
    num_blocks: int, data: st.DataObject
) -> None:
    pool = BlockPool(num_blocks)
    held: list[list[int]] = []
    for _ in range(data.draw(st.integers(0, 20))):
        if held and data.draw(st.booleans()):
            pool.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            count = data.draw(st.integers(0, pool.available))
            held.append(pool.allocate(count))
            assert len(held[-1]) == count
        in_use = [block for blocks in held for block in blocks]
        assert len(in_use) == len(set(in_use))
        assert set(in_use) <= set(range(num_blocks))
        assert len(in_use) + pool.available == num_blocks


def test_allocate_when_too_few_are_free_then_nothing_is_taken() -> None:
    pool = BlockPool(4)
    pool.allocate(3)
    with pytest.raises(ValueError, match="2 blocks asked for, 1 of 4 are free"):
        pool.allocate(2)
    assert pool.available == 1


def test_release_when_a_block_is_not_in_use_then_refused() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(ValueError, match="not in use"):
        pool.release(blocks)
    assert pool.available == 4
