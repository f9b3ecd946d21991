"""Blocks that are intact and lie: each is refused by a DagError that names the block, and soon."""

from __future__ import annotations

import pytest

from fused.cid import CID, DAG_PB, RAW, cid_of, encode_varint, format_cid
from fused.dag import walk
from fused.dag.build import symlink_node
from fused.dag.content import MAX_FILE_DEPTH
from fused.dag.dagpb import MAX_BLOCK, decode_node, encode_link, encode_node
from fused.dag.hamt import hash_name
from fused.dag.unixfs import DIRECTORY_DATA, file_data, shard_data
from fused.errors import DagError
from fused.types import Block
from tests.support.blocks import Blocks

LEAF = Block(cid_of(RAW, b"leaf"), b"leaf")


def node(links: list[tuple[CID, bytes]], data: bytes) -> Block:
    block = encode_node([encode_link(cid, name, 4) for cid, name in links], data)
    return Block(cid_of(DAG_PB, block), block)


def field(number: int, payload: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(payload)) + payload


GOOD_LINK = field(1, LEAF.cid) + field(2, b"a") + b"\x18\x04"

MALFORMED = {
    "cut in a length": b"\x12",
    "cut in a field": b"\x12\x05abc",
    "field 3": field(3, b""),
    "number as field": b"\x08\x01",
    "endless varint": b"\x0a" + b"\xff" * 30,
    "length above 64 bits": b"\x0a" + b"\xff" * 9 + b"\x7f",
    "length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
    "data twice": field(1, DIRECTORY_DATA) * 2,
    "links around data": field(2, GOOD_LINK) + field(1, DIRECTORY_DATA) + field(2, GOOD_LINK),
    "link without cid": field(2, field(2, b"a") + b"\x18\x04"),
    "link of nothing": field(2, b""),
    "link out of order": field(2, field(2, b"a") + field(1, LEAF.cid)),
    "cid twice": field(2, field(1, LEAF.cid) * 2),
    "link with field 4": field(2, GOOD_LINK + b"\x20\x04"),
    "size above 64 bits": field(2, field(1, LEAF.cid) + b"\x18" + encode_varint(1 << 64)),
    "cid cut": field(2, field(1, LEAF.cid[:-1])),
    "too large": field(1, bytes(MAX_BLOCK)),
}


@pytest.mark.parametrize("block", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_dag_pb(block: bytes) -> None:
    cid = cid_of(DAG_PB, block)
    with pytest.raises(DagError, match=format_cid(cid)) as caught:
        await walk.stat_node(Blocks([Block(cid, block)]).get, cid)
    assert caught.value.cid == cid


UNIXFS = {
    "no type": b"",
    "unknown type": b"\x08\x09",
    "metadata": b"\x08\x03",
    "cut": b"\x08",
    "cut in a fixed field": b"\x08\x02\x0d\x00",
    "group": b"\x08\x02\x0b",
    "size above 2**63": b"\x08\x02\x18" + b"\xff" * 9 + b"\x01",
    "filesize without content": b"\x08\x02\x18\x05",
    "content and another filesize": b"\x08\x02\x12\x02hi\x18\x03",
    "sizes without links": b"\x08\x02\x18\x05\x20\x05",
    "packed sizes without links": b"\x08\x02\x18\x05\x22\x01\x05",
    "symlink to nothing": b"\x08\x04",
    "symlink with a zero byte": b"\x08\x04\x12\x02a\0",
    "symlink of 4,096 bytes": b"\x08\x04" + field(2, b"x" * 4096),
    "symlink of a mebibyte": b"\x08\x04" + field(2, b"x" * (1 << 20)),
    "sizes whose sum is above 2**63": b"\x08\x02" + (b"\x20" + encode_varint((1 << 63) - 1)) * 2,
}


@pytest.mark.parametrize("data", UNIXFS.values(), ids=UNIXFS)
async def test_malformed_unixfs(data: bytes) -> None:
    block = node([], data)
    with pytest.raises(DagError, match=format_cid(block.cid)):
        await walk.stat_node(Blocks([block]).get, block.cid)


async def test_node_without_data_is_no_file() -> None:
    with pytest.raises(DagError, match="without data"):
        await walk.stat_node(Blocks([Block(cid_of(DAG_PB, b""), b"")]).get, cid_of(DAG_PB, b""))


@pytest.mark.parametrize("codec", [0x71, 0x78, 0x0129])
async def test_other_codec_is_no_file(codec: int) -> None:
    cid = CID(b"\x01" + encode_varint(codec) + LEAF.cid[2:])
    with pytest.raises(DagError, match="not part of a file tree"):
        await walk.read_range(Blocks([Block(cid, b"leaf")]).get, cid, 0, 1)


async def test_raw_block_above_the_limit() -> None:
    big = Block(cid_of(RAW, bytes(MAX_BLOCK + 1)), bytes(MAX_BLOCK + 1))
    with pytest.raises(DagError, match="at most"):
        await walk.stat_node(Blocks([big]).get, big.cid)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
async def test_names_that_no_directory_has(name: bytes) -> None:
    plain = node([(LEAF.cid, name)], DIRECTORY_DATA)
    with pytest.raises(DagError, match="entry name") as caught:
        [entry async for entry in walk.list_directory(Blocks([plain]).get, plain.cid)]
    assert caught.value.cid == plain.cid
    if name:  # without one it is a link to a shard
        slot = hash_name(name) >> 56
        shard = node([(LEAF.cid, b"%02X" % slot + name)], shard_data(1 << slot, 256))
        with pytest.raises(DagError, match="can't be"):
            [entry async for entry in walk.list_directory(Blocks([shard]).get, shard.cid)]


async def test_name_twice() -> None:
    block = node([(LEAF.cid, b"a"), (LEAF.cid, b"b"), (LEAF.cid, b"a")], DIRECTORY_DATA)
    with pytest.raises(DagError, match="twice"):
        await walk.lookup(Blocks([block]).get, block.cid, b"b")


@pytest.mark.parametrize("claimed", [3, 5, 1 << 40])
async def test_leaf_of_another_size_than_its_parent_says(claimed: int) -> None:
    block = node([(LEAF.cid, b"")], file_data([claimed]))
    with pytest.raises(DagError, match=f"where {claimed} should be") as caught:
        await walk.read_range(Blocks([block, LEAF]).get, block.cid, 0, 10)
    assert caught.value.cid == LEAF.cid


async def test_inner_node_of_another_size_than_its_parent_says() -> None:
    inner = node([(LEAF.cid, b"")] * 2, file_data([4, 4]))
    block = node([(inner.cid, b"")], file_data([9]))
    store = Blocks([block, inner, LEAF])
    with pytest.raises(DagError, match="8 bytes where 9 should be"):
        await walk.read_range(store.get, block.cid, 0, 10)


async def test_directory_as_a_part_of_a_file() -> None:
    inner = node([], DIRECTORY_DATA)
    block = node([(inner.cid, b"")], file_data([1]))
    with pytest.raises(DagError, match="not a file"):
        await walk.read_range(Blocks([block, inner]).get, block.cid, 0, 10)


async def test_file_that_is_too_deep() -> None:
    store = Blocks([LEAF])
    block = LEAF
    for _ in range(MAX_FILE_DEPTH + 5):
        block = node([(block.cid, b"")], file_data([4]))
        store.add([block])
    with pytest.raises(DagError, match="levels"):
        await walk.read_range(store.get, block.cid, 0, 10)


async def test_parts_of_no_bytes_are_not_entered() -> None:
    """60 levels of 100 links to the same node below: 100**60 visits for whoever goes into each."""
    block = node([], file_data([]))
    store = Blocks([block])
    for _ in range(60):
        block = node([(block.cid, b"")] * 100, file_data([0] * 100))
        store.add([block])
    assert await walk.read_range(store.get, block.cid, 0, 10) == b""
    assert [leaf async for leaf in walk.leaves(store.get, block.cid)] == [(block.cid, 0)]
    assert store.fetched == [block.cid] * 2


async def test_range_in_a_file_of_exabytes_is_quick() -> None:
    """The same node linked over and over makes a huge file of a few blocks: legal, and only the range is read."""
    block, size = LEAF, 4
    store = Blocks([LEAF])
    while size < 1 << 60:
        block = node([(block.cid, b"")] * 100, file_data([size] * 100))
        store.add([block])
        size *= 100
    assert await walk.stat_node(store.get, block.cid) == ("file", size)
    assert await walk.read_range(store.get, block.cid, size // 2 + 1, 7) == b"eafleaf"
    assert len(store.fetched) < 40


@pytest.mark.parametrize("fanout", [0, 1, 4, 100, 255, 2048, 1 << 60])
async def test_fan_out_that_is_not_allowed(fanout: int) -> None:
    block = node([], shard_data(0, fanout))
    with pytest.raises(DagError, match="fan-out"):
        await walk.stat_node(Blocks([block]).get, block.cid)


SHARDS = {
    "another hash function": ([], b"\x08\x05\x28\x23\x30\x80\x02"),
    "fewer bits than links": ([(LEAF.cid, b"00a")], shard_data(0, 256)),
    "more bits than links": ([], shard_data(1, 256)),
    "bits beyond the slots": ([(LEAF.cid, b"00a")], shard_data(1 << 256, 256)),
    "slot in lower case": ([(LEAF.cid, b"0aa")], shard_data(1 << 10, 256)),
    "link in another slot": ([(LEAF.cid, b"01a")], shard_data(1, 256)),
    "no slot": ([(LEAF.cid, b"0")], shard_data(1, 256)),
    "same slot twice": ([(LEAF.cid, b"00a"), (LEAF.cid, b"00b")], shard_data(3, 256)),
}


@pytest.mark.parametrize(("links", "data"), SHARDS.values(), ids=SHARDS)
async def test_malformed_shard(links: list[tuple[CID, bytes]], data: bytes) -> None:
    block = node(links, data)
    with pytest.raises(DagError, match=format_cid(block.cid)):
        await walk.stat_node(Blocks([block]).get, block.cid)


def shard_over(child: Block, fanout: int = 256) -> Block:
    """A shard whose every slot leads to `child`."""
    width = len(f"{fanout - 1:X}")
    links = [(child.cid, b"%0*X" % (width, slot)) for slot in range(fanout)]
    return node(links, shard_data((1 << fanout) - 1, fanout))


@pytest.mark.parametrize("fanout", [8, 256])
async def test_shards_linked_crosswise_over_an_empty_one(fanout: int) -> None:
    block = node([], shard_data(0, fanout))
    store = Blocks([block])
    for _ in range(6):
        block = shard_over(block, fanout)
        store.add([block])
    with pytest.raises(DagError, match="fits"):
        [entry async for entry in walk.list_directory(store.get, block.cid)]
    assert len(store.fetched) <= 8


async def test_shards_linked_crosswise_over_a_name() -> None:
    name = next(b"%d" % n for n in range(10**6) if hash_name(b"%d" % n) >> 48 == 0)  # right below the first slots
    slot = hash_name(name) >> 40 & 255
    block = node([(LEAF.cid, b"%02X" % slot + name)], shard_data(1 << slot, 256))
    store = Blocks([block])
    for _ in range(2):
        block = shard_over(block)
        store.add([block])
    listing = walk.list_directory(store.get, block.cid)
    assert (await anext(listing)).name == name
    with pytest.raises(DagError, match="can't be"):
        await anext(listing)


async def test_shard_deeper_than_the_hash() -> None:
    block = node([(LEAF.cid, b"00a")], shard_data(1, 256))
    store = Blocks([block])
    for _ in range(20):
        block = node([(block.cid, b"00")], shard_data(1, 256))
        store.add([block])
    with pytest.raises(DagError, match="deeper"):
        [entry async for entry in walk.list_directory(store.get, block.cid)]


async def test_subshard_of_another_fan_out_or_no_shard_at_all() -> None:
    for child in (node([(LEAF.cid, b"0a")], shard_data(1, 16)), node([], DIRECTORY_DATA), symlink_node(b"x")[1], LEAF):
        block = node([(child.cid, b"00")], shard_data(1, 256))
        with pytest.raises(DagError, match="fits"):
            [entry async for entry in walk.list_directory(Blocks([block, child]).get, block.cid)]


def test_data_before_links_is_read_as_other_writers_do() -> None:
    block = field(1, DIRECTORY_DATA) + field(2, GOOD_LINK)
    assert decode_node(cid_of(DAG_PB, block), block).links == [(LEAF.cid, b"a", 4)]


async def test_content_in_an_inner_node_is_read_but_has_no_leaves() -> None:
    data = b"\x08\x02\x12\x05outer\x18\x09\x20\x04"
    block = node([(LEAF.cid, b"")], data)
    store = Blocks([block, LEAF])
    assert await walk.read_range(store.get, block.cid, 0, 99) == b"outerleaf"
    assert await walk.read_range(store.get, block.cid, 4, 2) == b"rl"
    with pytest.raises(DagError, match="no list of leaves"):
        [leaf async for leaf in walk.leaves(store.get, block.cid)]
