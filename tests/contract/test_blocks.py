"""What every BlockStore does: the docstrings of `fused/store/base.py`, as tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from fused.cid import CID, DAG_CBOR, RAW, cid_of
from fused.errors import BlockNotFound
from fused.store.base import Block, BlockStore
from tests.contract.conftest import Place
from tests.support.toy_blocks import random_blocks, raw

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 300, 4096, 65535, 65536, 65537, MIB])
async def test_a_block_comes_back_as_it_was_put(store: BlockStore, size: int) -> None:
    [block] = random_blocks(1, size)
    assert await store.put([block]) == 1
    assert await store.get(block.cid) == block.data


async def test_a_batch_of_all_sizes_comes_back(store: BlockStore) -> None:
    batch = [*random_blocks(1200, 40), *random_blocks(50, 70_000), *random_blocks(10, MIB)]
    assert await store.put(batch) == len(batch)
    found = await store.get_many([block.cid for block in batch])
    assert found == {block.cid: block.data for block in batch}


async def test_put_counts_what_is_new(store: BlockStore) -> None:
    small, large = random_blocks(4, 100), random_blocks(2, 100_000)
    assert await store.put([*small[:2], large[0]]) == 3
    assert await store.put([*small, *large]) == 3
    assert await store.put([*small, *large]) == 0


async def test_a_block_twice_in_a_batch_is_one_block(store: BlockStore) -> None:
    small, large = raw(b"small"), raw(bytes(100_000))
    assert await store.put([small, large, small, large]) == 2
    assert (await store.stats()).blocks == 2
    assert await store.get(large.cid) == large.data


async def test_nothing_is_a_valid_batch(store: BlockStore) -> None:
    assert await store.put([]) == 0
    assert await store.get_many([]) == {}
    assert await store.has([]) == set()


async def test_an_unknown_block_is_not_found_and_named(store: BlockStore) -> None:
    known, unknown = raw(b"known"), raw(b"unknown")
    await store.put([known])
    with pytest.raises(BlockNotFound) as caught:
        await store.get(unknown.cid)
    assert caught.value.cid == unknown.cid
    with pytest.raises(BlockNotFound) as caught:
        await store.get_many([known.cid, unknown.cid])
    assert caught.value.cid == unknown.cid


async def test_get_many_takes_a_block_twice(store: BlockStore) -> None:
    a, b = raw(b"a"), raw(b"b")
    await store.put([a, b])
    assert await store.get_many([a.cid, b.cid, a.cid]) == {a.cid: b"a", b.cid: b"b"}


async def test_has_names_exactly_the_stored_ones(store: BlockStore) -> None:
    blocks = [*random_blocks(1500, 20), *random_blocks(4, 100_000)]
    await store.put(blocks[::2])
    assert await store.has([block.cid for block in blocks]) == {block.cid for block in blocks[::2]}


async def test_the_same_bytes_under_two_codecs_are_two_blocks(store: BlockStore, place: Place) -> None:
    content = b"\xa0"
    as_raw, as_cbor = Block(cid_of(RAW, content), content), Block(cid_of(DAG_CBOR, content), content)
    await store.put([as_raw])
    if place.node is None:
        assert await store.has([as_raw.cid, as_cbor.cid]) == {as_raw.cid}
    else:  # Kubo keeps bytes by their hash, whatever the codec
        assert await store.has([as_raw.cid, as_cbor.cid]) >= {as_raw.cid}
    assert await store.put([as_cbor]) == 1
    assert await store.get(as_cbor.cid) == content


@pytest.mark.parametrize("size", [10, 100_000])
async def test_blocks_under_other_hashes_are_kept_too(store: BlockStore, size: int) -> None:
    content = bytes(size)
    sha2_512 = CID(bytes((1, RAW, 0x13, 64)) + hashlib.sha512(content).digest())
    blake2b_256 = CID(bytes((1, RAW, 0xA0, 0xE4, 0x02, 32)) + hashlib.blake2b(content, digest_size=32).digest())
    assert await store.put([Block(sha2_512, content), Block(blake2b_256, content)]) == 2
    assert await store.get(sha2_512) == content
    assert await store.get(blake2b_256) == content


async def test_stats_count_blocks_and_bytes(store: BlockStore) -> None:
    empty = await store.stats()
    assert (empty.blocks, empty.bytes_stored) == (0, 0)
    await store.put([*random_blocks(3, 1000), *random_blocks(2, 100_000)])
    await store.put(random_blocks(3, 1000))
    stats = await store.stats()
    assert (stats.blocks, stats.bytes_stored) == (5, 203_000)
    assert stats.disk_bytes >= stats.bytes_stored


async def test_tasks_that_put_the_same_blocks_at_once_store_them_once(store: BlockStore) -> None:
    batch = [*random_blocks(300, 500), *random_blocks(6, 100_000)]
    new: list[int] = []

    async def put() -> None:
        new.append(await store.put(batch))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(put)
    assert sum(new) == len(batch)
    assert (await store.stats()).blocks == len(batch)
    assert len(await store.get_many([block.cid for block in batch])) == len(batch)


async def test_reads_go_on_beside_writes(store: BlockStore) -> None:
    known = random_blocks(20, 2000, seed=1)
    await store.put(known)
    async with trio.open_nursery() as nursery:
        for seed in range(2, 6):
            nursery.start_soon(store.put, random_blocks(500, 2000, seed=seed))
        for block in known:
            assert await store.get(block.cid) == block.data


async def test_a_cancelled_put_leaves_the_store_in_order(store: BlockStore, place: Place) -> None:
    batch = [*random_blocks(3000, 500), *random_blocks(40, 100_000)]
    with trio.move_on_after(0.005):
        await store.put(batch)
    present = await store.has([block.cid for block in batch])
    if place.node is None:
        assert (await store.stats()).blocks == len(present)
        assert await store.put(batch) == len(batch) - len(present)
    else:  # the node may have taken more than we heard of
        assert await store.put(batch) >= len(batch) - len(present)
        assert (await store.stats()).blocks == len(batch)
    assert len(await store.get_many([block.cid for block in batch])) == len(batch)


async def test_what_was_put_is_there_after_reopening(
    reopen: Callable[[], AbstractAsyncContextManager[BlockStore]],
) -> None:
    batch = [*random_blocks(50, 500), *random_blocks(3, 100_000)]
    async with reopen() as store:
        await store.put(batch)
    async with reopen() as store:
        assert await store.put(batch) == 0
        assert await store.get_many([block.cid for block in batch]) == {block.cid: block.data for block in batch}


async def test_a_store_opened_twice_is_one_store(reopen: Callable[[], AbstractAsyncContextManager[BlockStore]]) -> None:
    block, large = raw(b"x"), raw(bytes(100_000))
    async with reopen() as one, reopen() as other:
        await one.put([block, large])
        assert await other.get(block.cid) == block.data
        assert await other.put([block, large]) == 0


async def test_closing_twice_is_closing(store: BlockStore) -> None:
    await store.aclose()
    await store.aclose()
