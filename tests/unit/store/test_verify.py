"""The verifying wrapper catches every lie of the store inside."""

from __future__ import annotations

import pytest

from fused.errors import BlockCorrupt, BlockNotFound, StoreUnavailable
from fused.store.memory import MemoryStore
from fused.store.verify import VerifyingStore
from tests.support.faulty_store import Cut, Fail, FaultyStore, FlipBit, Forget
from tests.support.toy_blocks import random_blocks


@pytest.mark.parametrize("size", [10, 1000, 200_000])  # below and above what is hashed in place
async def test_a_wrong_block_is_an_error_that_names_it(size: int) -> None:
    good, flipped, short = random_blocks(3, size)
    inner = FaultyStore(MemoryStore(), FlipBit(flipped.cid, bit=size * 4), Cut(short.cid, size - 1))
    store = VerifyingStore(inner)
    await store.put([good, flipped, short])
    assert await store.get_many([good.cid]) == {good.cid: good.data}
    for bad in (flipped, short):
        for read in (store.get(bad.cid), store.get_many([good.cid, bad.cid])):
            with pytest.raises(BlockCorrupt) as caught:
                await read
            assert caught.value.cid == bad.cid


async def test_an_answer_with_less_than_was_asked_for_is_an_error() -> None:
    good, forgotten = random_blocks(2, 10)
    store = VerifyingStore(FaultyStore(MemoryStore(), Forget(forgotten.cid)))
    await store.put([good, forgotten])
    with pytest.raises(BlockNotFound) as caught:
        await store.get_many([good.cid, forgotten.cid])
    assert caught.value.cid == forgotten.cid


async def test_failures_of_the_inner_store_come_through() -> None:
    [block] = random_blocks(1, 10)
    store = VerifyingStore(FaultyStore(MemoryStore(), Fail("put", nth=2), Fail("get")))
    assert await store.put([block]) == 1
    with pytest.raises(StoreUnavailable):
        await store.put([block])
    with pytest.raises(StoreUnavailable):
        await store.get(block.cid)
    assert await store.get(block.cid) == block.data
