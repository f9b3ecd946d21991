"""What every PinStore does: the docstrings of `fused/store/base.py`, as tests."""

from __future__ import annotations

from typing import Protocol

import pytest

from fused.cid import CID, RAW
from fused.errors import BlockNotFound
from fused.store.base import BlockStore, Pin, PinStore
from tests.contract.conftest import Collect, Place
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


async def test_gc_removes_what_no_pin_of_any_owner_reaches(pinning: Pinning, collect: Collect, place: Place) -> None:
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

    assert await collect(pinning) in (len(garbage), None)
    assert await pinning.has([block.cid for block in (*kept, *garbage)]) == {block.cid for block in kept}
    if place.node is None:  # which tells nobody what it took
        assert (await pinning.stats()).blocks == len(kept)
        assert (await pinning.stats()).bytes_stored == sum(len(block.data) for block in kept)

    await pinning.unpin("b", two.cid)
    gone = {two.cid, middle.cid, *(leaf.cid for leaf in twos[1:])}  # all but the leaf that `one` shares
    assert await collect(pinning) in (len(gone), None)
    assert await pinning.has([block.cid for block in kept]) == {block.cid for block in kept} - gone
    assert len(await pinning.get_many([block.cid for block in (one, *ones)])) == len(ones) + 1


async def test_a_removed_block_can_be_put_again(pinning: Pinning, collect: Collect) -> None:
    batch = [raw(b"x"), raw(bytes(100_000))]
    await pinning.put(batch)
    assert await collect(pinning) in (2, None)
    assert await pinning.put(batch) == 2
    assert len(await pinning.get_many([block.cid for block in batch])) == 2


@pytest.mark.parametrize("size", [100, 100_000])
async def test_a_dag_with_a_hole_is_not_taken_for_whole(pinning: Pinning, place: Place, size: int) -> None:
    [missing, garbage] = random_blocks(2, size)
    root = node(node(missing.cid).cid)
    await pinning.put([root, node(missing.cid), garbage])

    async def pin_and_collect() -> None:
        await pinning.pin(Pin("m", root.cid, ""))
        await pinning.gc(links_of)

    with pytest.raises(BlockNotFound) as caught:
        await pin_and_collect()
    assert caught.value.cid == missing.cid
    assert await pinning.has([garbage.cid]) == {garbage.cid}
    if place.node is not None:  # it pins nothing that is not whole
        assert await pinning.pins() == []


async def test_gc_follows_links_to_blocks_that_are_inside_their_cid(pinning: Pinning, collect: Collect) -> None:
    leaf = raw(b"leaf")
    inner = node(leaf.cid).data
    inline = CID(bytes((1, 0x71, 0, len(inner))) + inner)
    inline_leaf = CID(bytes((1, RAW, 0, 2)) + b"hi")
    root = node(inline, inline_leaf)
    await pinning.put([root, leaf])
    await pinning.pin(Pin("m", root.cid, ""))
    assert await collect(pinning) in (0, None)
    assert await pinning.has([leaf.cid]) == {leaf.cid}


async def test_gc_walks_a_deep_dag(pinning: Pinning, collect: Collect) -> None:
    chain = [raw(b"end"), node(raw(b"end").cid)]
    for depth in range(3000):
        chain.append(node(chain[-1].cid, salt=str(depth).encode()))
    await pinning.put(chain)
    await pinning.pin(Pin("m", chain[-1].cid, ""))
    assert await collect(pinning) in (0, None)
    assert len(await pinning.has([block.cid for block in chain])) == len(chain)


async def test_recent_blocks_are_left_alone_or_missed(patient: Pinning, collect: Collect, place: Place) -> None:
    batch = [raw(b"x"), raw(bytes(100_000))]
    root = node(*(block.cid for block in batch))
    await patient.put([*batch, root])
    assert await collect(patient) in (0, None)
    if place.node is None:
        assert len(await patient.get_many([block.cid for block in batch])) == 2
        return
    with pytest.raises(BlockNotFound):
        await patient.pin(Pin("m", root.cid, ""))
    assert await patient.put([*batch, root]) == 3
    await patient.pin(Pin("m", root.cid, ""))
    await collect(patient)
    assert len(await patient.get_many([block.cid for block in batch])) == 2
