"""The planned faults happen as planned, or tests that rely on them test nothing."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from fused.errors import StoreUnavailable
from fused.store.base import Pin
from fused.store.memory import MemoryStore
from tests.support.faulty_store import Delay, Fail, FaultyStore, Hold
from tests.support.toy_blocks import random_blocks


async def test_the_nth_call_fails_and_stores_nothing() -> None:
    a, b, c = random_blocks(3, 10)
    store = FaultyStore(MemoryStore(), Fail("put", nth=2, times=2))
    assert await store.put([a]) == 1
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.put([b])
    assert await store.put([c]) == 1
    assert await store.has([a.cid, b.cid, c.cid]) == {a.cid, c.cid}
    assert store.calls == {"put": 4, "has": 1}


async def test_a_failure_after_the_fact_has_stored_all_the_same() -> None:
    [block] = random_blocks(1, 10)
    store = FaultyStore(MemoryStore(), Fail("put", after=True), Fail("pin", error=OSError("x")))
    with pytest.raises(StoreUnavailable):
        await store.put([block])
    assert await store.get(block.cid) == block.data
    with pytest.raises(OSError, match="x"):
        await store.pin(Pin("m", block.cid, ""))
    assert await store.pins() == []


async def test_a_delay_takes_its_time(autojump_clock: trio.testing.MockClock) -> None:
    [block] = random_blocks(1, 10)
    store = FaultyStore(MemoryStore(), Delay("get", 30))
    await store.put([block])
    before = trio.current_time()
    await store.get(block.cid)
    assert trio.current_time() - before == 30


async def test_a_held_call_waits_to_be_released(nursery: trio.Nursery) -> None:
    blocks = random_blocks(1, 10)
    hold = Hold("put")
    store = FaultyStore(MemoryStore(), hold)
    nursery.start_soon(store.put, blocks)
    await hold.reached.wait()
    assert await store.stats() == await MemoryStore().stats()
    hold.release.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (await store.stats()).blocks == 1
