"""Blocks damaged on disk are found by their CID, never handed out, and repaired by the next put."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from fused.cid import format_cid
from fused.errors import BlockCorrupt
from fused.store.base import Pin
from fused.store.embedded import EmbeddedStore
from tests.support.store_files import block_file, change_block, cut, empty, flip_bit, lengthen
from tests.support.toy_blocks import links_of, node, random_blocks

SMALL, LARGE = 1000, 100_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    async with EmbeddedStore(tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("change", [flip_bit, cut, lengthen, empty])
async def test_a_damaged_block_is_an_error_that_names_it(
    store: EmbeddedStore, size: int, change: Callable[[bytes], bytes]
) -> None:
    good, bad = random_blocks(2, size)
    await store.put([good, bad])
    change_block(Path(store.path), bad.cid, change)
    for read in (store.get(bad.cid), store.get_many([good.cid, bad.cid])):
        with pytest.raises(BlockCorrupt) as caught:
            await read
        assert caught.value.cid == bad.cid
        assert format_cid(bad.cid) in str(caught.value)
    assert await store.get(good.cid) == good.data


async def test_a_block_whose_file_is_gone_is_damaged_not_unknown(store: EmbeddedStore) -> None:
    [block] = random_blocks(1, LARGE)
    await store.put([block])
    block_file(Path(store.path), block.cid).unlink()
    with pytest.raises(BlockCorrupt, match="file is missing"):
        await store.get(block.cid)


async def test_a_block_whose_bytes_are_gone_from_the_database_is_damaged(store: EmbeddedStore) -> None:
    [block] = random_blocks(1, SMALL)
    await store.put([block])
    with closing(sqlite3.connect(Path(store.path, "blocks.sqlite3"))) as c, c:
        c.execute("DELETE FROM small")
    with pytest.raises(BlockCorrupt, match="missing"):
        await store.get(block.cid)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_once_damage_was_read_the_block_counts_as_not_stored_and_put_repairs_it(
    store: EmbeddedStore, size: int
) -> None:
    good, bad = random_blocks(2, size)
    await store.put([good, bad])
    change_block(Path(store.path), bad.cid, flip_bit)
    with pytest.raises(BlockCorrupt):
        await store.get(bad.cid)
    assert await store.has([good.cid, bad.cid]) == {good.cid}

    assert await store.put([good, bad]) == 1
    assert await store.get(bad.cid) == bad.data
    assert await store.has([good.cid, bad.cid]) == {good.cid, bad.cid}
    stats = await store.stats()
    assert (stats.blocks, stats.bytes_stored) == (2, 2 * size)
    if size == LARGE:
        assert block_file(Path(store.path), bad.cid).read_bytes() == bad.data  # and only one file is left


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_repair_finds_the_damage_itself(store: EmbeddedStore, size: int) -> None:
    whole, flipped, shorter, unknown = random_blocks(4, size)
    await store.put([whole, flipped, shorter])
    change_block(Path(store.path), flipped.cid, flip_bit)
    change_block(Path(store.path), shorter.cid, cut)
    assert await store.put([whole, flipped, shorter]) == 0  # put does not read what it knows
    blocks = [whole, flipped, shorter, unknown]
    assert await store.repair(blocks) == 3
    assert await store.repair(blocks) == 0
    assert await store.get_many([block.cid for block in blocks]) == {block.cid: block.data for block in blocks}


async def test_a_damaged_root_can_not_be_pinned(store: EmbeddedStore) -> None:
    root = node(salt=b"root")
    await store.put([root])
    change_block(Path(store.path), root.cid, flip_bit)
    with pytest.raises(BlockCorrupt):
        await store.get(root.cid)
    with pytest.raises(Exception, match="not in the store"):
        await store.pin(Pin("m", root.cid, ""))


async def test_gc_removes_nothing_when_a_pinned_node_is_damaged(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path / "store", grace_s=0) as store:
        leaf, garbage = random_blocks(2, SMALL)
        root = node(leaf.cid)
        await store.put([root, leaf, garbage])
        await store.pin(Pin("m", root.cid, ""))
        change_block(tmp_path / "store", root.cid, flip_bit)
        with pytest.raises(BlockCorrupt) as caught:
            await store.gc(links_of)
        assert caught.value.cid == root.cid
        assert await store.has([leaf.cid, garbage.cid]) == {leaf.cid, garbage.cid}


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_block_that_can_be_read_again_is_whole_again(store: EmbeddedStore, size: int) -> None:
    """What the disk could not read may have been a cable."""
    [block] = random_blocks(1, size)
    await store.put([block])
    change_block(Path(store.path), block.cid, flip_bit)
    with pytest.raises(BlockCorrupt):
        await store.get(block.cid)
    assert await store.has([block.cid]) == set()
    change_block(Path(store.path), block.cid, flip_bit)
    assert await store.get(block.cid) == block.data
    assert await store.has([block.cid]) == {block.cid}
