"""Ranges and streams of stored files."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fused.cid import DAG_PB, RAW, cid_of
from fused.dag.build import file_root
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.unixfs import file_data
from fused.errors import BlockCorrupt, BlockNotFound, DagError
from fused.store.base import Block
from fused.store.embedded import EmbeddedStore
from fused.store.memory import MemoryStore
from fused.view import content
from tests.support.snapshot_builder import file_of
from tests.support.store_files import change_block, cut, flip_bit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fused.cid import CID
    from fused.view.directory import Blocks
    from tests.unit.view.conftest import CountingStore

MIB = 1 << 20


async def streamed(blocks: Blocks, root: CID, offset: int = 0, length: int | None = None) -> bytes:
    async with content.open_stream(blocks, root, offset, length) as chunks:
        return b"".join([chunk async for chunk in chunks])


_BIG = random.Random(1).randbytes(9 * MIB + 12345)


@given(st.integers(0, len(_BIG) + 10), st.integers(0, 3 * MIB))
@example(0, 0)
@example(MIB - 1, 2)
@example(MIB, 1)
@example(4 * MIB - 1, 4 * MIB + 2)
@example(len(_BIG), 1)
@example(len(_BIG) - 1, 100)
async def test_any_range_is_the_same_range_of_the_file(offset: int, length: int) -> None:
    store = MemoryStore()
    root, _ = await file_of(store, _BIG)
    expected = _BIG[offset : offset + length]
    assert await content.read(store, root, offset, length) == expected
    assert await streamed(store, root, offset, length) == expected


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 16 * MIB + 3])
async def test_stream_gives_the_whole_file(store: CountingStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    root, _ = await file_of(store, data)
    assert await streamed(store, root) == data


async def test_range_fetches_only_its_own_leaves(store: CountingStore) -> None:
    root, _ = await file_of(store, _BIG)
    store.asked.clear()
    await content.read(store, root, 5 * MIB + 7, 10)
    assert store.asked == [root, cid_of(RAW, _BIG[5 * MIB : 6 * MIB])]


async def test_stream_fetches_each_block_once(store: CountingStore) -> None:
    root, _ = await file_of(store, _BIG)
    store.asked.clear()
    await streamed(store, root)
    assert len(store.asked) == len(set(store.asked)) == 11


async def test_file_of_several_levels_of_nodes(store: CountingStore) -> None:
    """1,100 chunks of equal content: 1.1 GiB that take 1 MiB, and two levels of nodes."""
    chunk = random.Random(2).randbytes(CHUNK)
    leaf = cid_of(RAW, chunk)
    tail = b"the end"
    leaves = [leaf] * 1100 + [cid_of(RAW, tail)]
    root, nodes, _ = file_root(leaves, 1100 * CHUNK + len(tail))
    await store.put([Block(leaf, chunk), Block(leaves[-1], tail), *nodes])
    count = 0
    async with content.open_stream(store, root, 1020 * CHUNK) as chunks:
        async for part in chunks:
            start = (1020 * CHUNK + count) % CHUNK
            assert start == 0
            assert part in (chunk * (len(part) // CHUNK) + tail, chunk * (len(part) // CHUNK))
            count += len(part)
    assert count == 80 * CHUNK + len(tail)
    assert await content.read(store, root, 1024 * CHUNK - 3, 6) == chunk[-3:] + chunk[:3]
    assert await content.read(store, root, 1100 * CHUNK, 100) == tail


async def test_what_is_ahead_of_a_slow_reader_is_bounded(store: CountingStore) -> None:
    import trio.testing

    root, _ = await file_of(store, random.Random(3).randbytes(40 * MIB))
    store.asked.clear()
    async with content.open_stream(store, root) as chunks:
        await anext(chunks)
        await trio.testing.wait_all_tasks_blocked()
        bound = content.WINDOW // CHUNK * content.AHEAD + 1
        assert len(store.asked) <= bound
        await anext(chunks)
        await trio.testing.wait_all_tasks_blocked()
        assert len(store.asked) <= bound + content.WINDOW // CHUNK


@pytest.mark.parametrize("damage", [flip_bit, cut])
async def test_damaged_leaf_is_an_error_after_all_the_right_bytes(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    async with EmbeddedStore(tmp_path / "store") as store:
        root, _ = await file_of(store, _BIG)
        bad = cid_of(RAW, _BIG[6 * MIB : 7 * MIB])
        change_block(tmp_path / "store", bad, damage)
        got = bytearray()

        async def read_on() -> None:
            async with content.open_stream(store, root) as chunks:
                async for chunk in chunks:
                    got.extend(chunk)

        with pytest.raises(BlockCorrupt) as caught:
            await read_on()
        assert caught.value.cid == bad
        assert got == _BIG[: len(got)]
        assert len(got) >= 4 * MIB


async def test_missing_leaf_is_named(store: CountingStore) -> None:
    root, _ = await file_of(store, _BIG)
    gone = cid_of(RAW, _BIG[MIB : 2 * MIB])
    del store.blocks[gone]
    with pytest.raises(BlockNotFound) as caught:
        await streamed(store, root)
    assert caught.value.cid == gone


async def test_errors_of_the_reader_come_out_as_they_are(store: CountingStore) -> None:
    root, _ = await file_of(store, _BIG)

    async def give_up() -> None:
        async with content.open_stream(store, root) as chunks:
            async for _ in chunks:
                raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await give_up()


async def test_leaf_of_another_size_than_its_parent_says_is_refused(store: CountingStore) -> None:
    leaf = Block(cid_of(RAW, b"four"), b"four")
    data = encode_node([encode_link(leaf.cid, b"", 5)], file_data([5]))
    root = cid_of(DAG_PB, data)
    await store.put([leaf, Block(root, data)])
    with pytest.raises(DagError):
        await streamed(store, root)
