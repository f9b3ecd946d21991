"""What every PinStore does: the docstrings of `fused/store/base.py`, as tests."""

from __future__ import annotations

from typing import Protocol

import pytest

from fused.cid import CID, RAW
from fused.errors import BlockNotFound
from fused.store.base import BlockStore, Pin, PinStore
from tests.support.toy_blocks import links_of, node, random_blocks, raw


class Pinning(BlockStore, PinStore, Protocol):
    """A store with both halves."""


async def test_pins_are_listed_oldest_first_and_by_owner(pinning: Pinning) -> None:
    a, b, c = (raw(content) for content in (b"a", b"b", b"c"))
    await pinning.put([a, b, c])
    pins = [Pin("work", c.cid, "third letter"), Pin("home", a.cid, ""), Pin("work", a.cid, "first")]
    for pin in pins:
        await pinning.pin(pin)
    assert await pinning.pins() == pins
    assert await pinning.pins("work") == [pins[0], pins[2]]
    assert await pinning.pins("nobody") == []


async def test_only_a_stored_block_can_be_pinned(pinning: Pinning) -> None:
    block = raw(b"x")
    with pytest.raises(BlockNotFound) as caught:
        await pinning.pin(Pin("m", block.cid, ""))
    assert caught.value.cid == block.cid
    assert await pinning.pins() == []


async def test_pinning_again_renames_and_is_one_pin(pinning: Pinning) -> None:
    a, b = raw(b"a"), raw(b"b")
    await pinning.put([a, b])
    await pinning.pin(Pin("m", a.cid, "old"))
    await pinning.pin(Pin("m", b.cid, ""))
    await pinning.pin(Pin("m", a.cid, "new"))
    assert await pinning.pins() == [Pin("m", a.cid, "new"), Pin("m", b.cid, "")]
    await pinning.unpin("m", a.cid)
    assert await pinning.pins() == [Pin("m", b.cid, "")]


async def test_unpinning_drops_one_owners_pin_and_nothing_else(pinning: Pinning) -> None:
    block = raw(b"x")
    await pinning.put([block])
    await pinning.pin(Pin("one", block.cid, ""))
    await pinning.pin(Pin("two", block.cid, ""))
    await pinning.unpin("one", block.cid)
    await pinning.unpin("one", block.cid)
    await pinning.unpin("three", raw(b"unknown").cid)
    assert await pinning.pins() == [Pin("two", block.cid, "")]


async def test_gc_removes_what_no_pin_of_any_owner_reaches(pinning: Pinning) -> None:
    leaves = [*random_blocks(600, 100), *random_blocks(6, 100_000)]
    ones, twos = leaves[:-3], leaves[-4:]  # share a leaf
    one = node(*(leaf.cid for leaf in ones))
    two = node(node(*(leaf.cid for leaf in twos)).cid)
    middle = node(*(leaf.cid for leaf in twos))
    garbage = [node(one.cid, salt=b"old root"), *random_blocks(700, 50, seed=1), *random_blocks(3, 100_000, seed=1)]
    kept = [*leaves, one, two, middle]
    await pinning.put([*kept, *garbage])
    await pinning.pin(Pin("a", one.cid, ""))
    await pinning.pin(Pin("b", two.cid, ""))

    assert await pinning.gc(links_of) == len(garbage)
    assert await pinning.has([block.cid for block in (*kept, *garbage)]) == {block.cid for block in kept}
    assert (await pinning.stats()).blocks == len(kept)
    assert (await pinning.stats()).bytes_stored == sum(len(block.data) for block in kept)

    await pinning.unpin("b", two.cid)
    assert await pinning.gc(links_of) == 5  # two, middle, and the three leaves that `one` does not share
    assert len(await pinning.get_many([block.cid for block in (one, *ones)])) == len(ones) + 1


async def test_a_removed_block_can_be_put_again(pinning: Pinning) -> None:
    batch = [raw(b"x"), raw(bytes(100_000))]
    await pinning.put(batch)
    assert await pinning.gc(links_of) == 2
    assert await pinning.put(batch) == 2
    assert len(await pinning.get_many([block.cid for block in batch])) == 2


@pytest.mark.parametrize("size", [100, 100_000])
async def test_gc_removes_nothing_when_a_pinned_dag_has_a_hole(pinning: Pinning, size: int) -> None:
    [missing, garbage] = random_blocks(2, size)
    root = node(node(missing.cid).cid)
    await pinning.put([root, node(missing.cid), garbage])
    await pinning.pin(Pin("m", root.cid, ""))
    with pytest.raises(BlockNotFound) as caught:
        await pinning.gc(links_of)
    assert caught.value.cid == missing.cid
    assert await pinning.has([garbage.cid]) == {garbage.cid}


async def test_gc_follows_links_to_blocks_that_are_inside_their_cid(pinning: Pinning) -> None:
    leaf = raw(b"leaf")
    inner = node(leaf.cid).data
    inline = CID(bytes((1, 0x71, 0, len(inner))) + inner)
    inline_leaf = CID(bytes((1, RAW, 0, 2)) + b"hi")
    root = node(inline, inline_leaf)
    await pinning.put([root, leaf])
    await pinning.pin(Pin("m", root.cid, ""))
    assert await pinning.gc(links_of) == 0
    assert await pinning.has([leaf.cid]) == {leaf.cid}


async def test_gc_walks_a_deep_dag(pinning: Pinning) -> None:
    chain = [node(raw(b"end").cid)]
    for depth in range(3000):
        chain.append(node(chain[-1].cid, salt=str(depth).encode()))
    await pinning.put([raw(b"end"), *chain])
    await pinning.pin(Pin("m", chain[-1].cid, ""))
    assert await pinning.gc(links_of) == 0


async def test_gc_leaves_recent_blocks_alone(patient: Pinning) -> None:
    batch = [raw(b"x"), raw(bytes(100_000))]
    await patient.put(batch)
    assert await patient.gc(links_of) == 0
    assert len(await patient.get_many([block.cid for block in batch])) == 2
