"""Reading what was built: the right bytes, and no more blocks than needed. Hostile trees are in test_hostile.py."""

from __future__ import annotations

import pytest

from fused.cid import CID, DAG_CBOR, DAG_PB, RAW, cid_of
from fused.dag import dagcbor, walk
from fused.dag.build import DirEntry, directory, file_root, symlink_node
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.unixfs import file_data
from fused.errors import DagError, PathNotInDag
from fused.types import Block
from tests.support.blocks import Blocks


def add_file(store: Blocks, content: bytes) -> CID:
    leaves = [
        Block(cid_of(RAW, piece), piece) for piece in (content[i : i + CHUNK] for i in range(0, len(content), CHUNK))
    ]
    root, above, _ = file_root([leaf.cid for leaf in leaves], len(content))
    store.add(leaves + above)
    return root


def add_directory(store: Blocks, entries: dict[bytes, CID]) -> CID:
    root, blocks, _ = directory(DirEntry(name, cid, 1) for name, cid in entries.items())
    store.add(blocks)
    return root


CONTENT = b"".join(bytes([n]) * CHUNK for n in (1, 2, 3)) + b"tail"


async def test_range_over_a_chunk_border() -> None:
    store = Blocks()
    root = add_file(store, CONTENT)
    assert await walk.read_range(store.get, root, CHUNK - 2, 4) == b"\1\1\2\2"


async def test_range_fetches_only_the_blocks_in_which_it_lies() -> None:
    store = Blocks()
    root = add_file(store, CONTENT)
    await walk.read_range(store.get, root, 2 * CHUNK, CHUNK)
    assert store.fetched == [root, cid_of(RAW, b"\3" * CHUNK)]


async def test_range_past_the_end_is_short_and_fetches_no_leaf() -> None:
    store = Blocks()
    root = add_file(store, CONTENT)
    assert await walk.read_range(store.get, root, 3 * CHUNK + 2, 100) == b"il"
    store.fetched.clear()
    assert await walk.read_range(store.get, root, len(CONTENT), 100) == b""
    assert await walk.read_range(store.get, root, 5, 0) == b""
    assert store.fetched == [root, root]


async def test_a_chunk_that_comes_often_is_fetched_once_in_a_batch() -> None:
    store = Blocks()
    root = add_file(store, bytes(5 * CHUNK))
    assert await walk.read_range(store.get, root, 0, 5 * CHUNK, get_many=store.get_many) == bytes(5 * CHUNK)
    assert store.fetched == [root, cid_of(RAW, bytes(CHUNK))]


async def test_whole_file_comes_leaf_by_leaf() -> None:
    store = Blocks()
    root = add_file(store, CONTENT)
    parts = [part async for part in walk.read_file(store.get, root)]
    assert [len(part) for part in parts] == [CHUNK, CHUNK, CHUNK, 4]
    assert b"".join(parts) == CONTENT


async def test_leaves_are_listed_without_fetching_them() -> None:
    store = Blocks()
    leaves = [cid_of(RAW, b"%d" % n) for n in range(1500)]
    root, blocks, _ = file_root(leaves, 1500 * CHUNK - 1)
    store.add(blocks)
    found = [leaf async for leaf in walk.leaves(store.get, root)]
    assert found == [*((cid, CHUNK) for cid in leaves[:-1]), (leaves[-1], CHUNK - 1)]
    assert set(store.fetched) == {block.cid for block in blocks}


@pytest.mark.parametrize("content", [b"", b"x"])
async def test_file_of_one_leaf_is_its_own_leaf(content: bytes) -> None:
    store = Blocks()
    root = cid_of(RAW, content)
    store.add([Block(root, content)])
    assert [leaf async for leaf in walk.leaves(store.get, root)] == [(root, len(content))]
    assert await walk.read_range(store.get, root, 0, 9) == content
    assert await walk.stat_node(store.get, root) == ("file", len(content))


@pytest.mark.parametrize("count", [0, 1, 100, 9000])
async def test_directory_is_listed_and_looked_up_plain_or_sharded(count: int) -> None:
    store = Blocks()
    entries = {b"name %d" % n: cid_of(RAW, b"%d" % n) for n in range(count)}
    root = add_directory(store, entries)
    assert {entry.name: entry.cid async for entry in walk.list_directory(store.get, root)} == entries
    assert await walk.stat_node(store.get, root) == ("dir", 0)
    store.fetched.clear()
    for name in list(entries)[:5]:
        assert (await walk.lookup(store.get, root, name)).cid == entries[name]
    assert len(store.fetched) <= 5 * 4  # only the shards on the way
    for missing in (b"gone", b"", b"name", b"name 0/", b"name 0\0"):
        with pytest.raises(PathNotInDag):
            await walk.lookup(store.get, root, missing)


async def test_paths_resolve_through_directories() -> None:
    store = Blocks()
    file = add_file(store, b"hello")
    inner = add_directory(store, {b"\xff": file, b"file": file})
    many = add_directory(store, {b"inner": inner} | {b"%d" % n: file for n in range(9000)})
    root = add_directory(store, {b"many": many})
    assert await walk.resolve(store.get, root, b"") == root
    assert await walk.resolve(store.get, root, b"/many//inner/\xff") == file
    assert await walk.resolve(store.get, root, b"many/inner/") == inner
    with pytest.raises(PathNotInDag, match="many/gone does not exist"):
        await walk.resolve(store.get, root, b"many/gone/x")
    with pytest.raises(PathNotInDag, match="is a file"):
        await walk.resolve(store.get, root, b"many/inner/file/x")
    with pytest.raises(PathNotInDag):
        await walk.resolve(store.get, root, b"many/../many")


async def test_symbolic_link() -> None:
    cid, block, _ = symlink_node(b"../\xff")
    store = Blocks([block])
    assert await walk.read_link(store.get, cid) == b"../\xff"
    assert await walk.stat_node(store.get, cid) == ("link", 4)
    with pytest.raises(DagError, match="not a file"):
        await walk.read_range(store.get, cid, 0, 1)
    with pytest.raises(DagError, match="not a directory"):
        [entry async for entry in walk.list_directory(store.get, cid)]
    with pytest.raises(DagError, match="not a symbolic link"):
        await walk.read_link(store.get, add_file(store, b"x"))


async def test_inline_blocks_are_read_from_their_cid() -> None:
    inline = CID(b"\x01\x55\x00\x05hello")
    store = Blocks()
    root = add_directory(store, {b"inline": inline})
    cid = await walk.resolve(store.get, root, b"inline")
    assert await walk.read_range(store.get, cid, 1, 3) == b"ell"
    node = encode_node([encode_link(inline, b"", 5)] * 2, file_data([5, 5]))
    file = cid_of(DAG_PB, node)
    store.add([Block(file, node)])
    assert await walk.read_range(store.get, file, 0, 99, get_many=store.get_many) == b"hellohello"
    assert store.fetched == [root, root, file]


def test_links_for_garbage_collection() -> None:
    leaf, link = cid_of(RAW, b"leaf"), cid_of(DAG_PB, b"node")
    node = encode_node([encode_link(leaf, b"", 1), encode_link(link, b"", 1)], b"")
    assert walk.links_of(cid_of(DAG_PB, node), node) == [leaf, link]
    assert walk.links_of(leaf, b"leaf") == []
    obj = dagcbor.encode({"a": [leaf, {"b": link}], "c": dagcbor.literal(leaf), "d": "text", "e": dagcbor.literal(b"")})
    assert walk.links_of(cid_of(DAG_CBOR, obj), obj) == [leaf, link]
    small = encode_node([encode_link(leaf, b"", 1)], b"")
    inline = CID(bytes((1, DAG_PB, 0, len(small))) + small)  # in no store, but what it links to may be
    outer = encode_node([encode_link(inline, b"", 1), encode_link(CID(b"\x01\x55\x00\x01x"), b"", 1)], b"")
    assert walk.links_of(cid_of(DAG_PB, outer), outer) == [leaf]
    with pytest.raises(DagError, match="codec"):
        walk.links_of(CID(b"\x01\x78\x12\x20" + bytes(32)), b"?")
