"""A few hostile blocks that stand for more than any machine holds: refused, or read in proportion to what comes out."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from fused.cid import CID, DAG_CBOR, DAG_PB, RAW, cid_of, format_cid
from fused.dag import dagcbor
from fused.dag.attrs import MAX_XATTR_NAMES, MAX_XATTRS_APART
from fused.dag.build import file_root
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.meta import read_meta_dir
from fused.dag.unixfs import DIRECTORY_DATA
from fused.errors import DagError
from fused.types import Block
from fused.view.compare import compare
from fused.view.directory import MAX_DEPTH, open_root, walk
from tests.support.blocks import Blocks

LEAF = Block(cid_of(RAW, b"leaf"), b"leaf")
ATTRS: dict[str, object] = {"kind": "dir", "mode": 0, "uid": 0, "gid": 0, "mtime": [0, 0]}


def directory_of(child: CID, names: int = 1) -> Block:
    data = encode_node([encode_link(child, b"%04d" % n, 4) for n in range(names)], DIRECTORY_DATA)
    return Block(cid_of(DAG_PB, data), data)


def cbor(value: object) -> Block:
    data = dagcbor.encode(value)
    return Block(cid_of(DAG_CBOR, data), data)


def file_of(store: Blocks, content: bytes) -> CID:
    """A file in which equal chunks are one block."""
    chunks = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    store.add(Block(cid_of(RAW, chunk), chunk) for chunk in set(chunks))
    root, blocks, _ = file_root([cid_of(RAW, chunk) for chunk in chunks], len(content))
    store.add(blocks)
    return root


# Depth and width


@pytest.mark.slow
async def test_directories_one_hundred_thousand_deep_are_refused_by_name() -> None:
    store, block = Blocks([LEAF]), directory_of(LEAF.cid)
    store.add([block])
    for _ in range(100_000):
        block = directory_of(block.cid)
        store.add([block])
    root = await open_root(store, block.cid)
    seen = 0
    with pytest.raises(DagError, match=f"more than {MAX_DEPTH:,} directories") as caught:  # noqa: PT012
        async for _ in walk(store, root.node):
            seen += 1
    assert seen == MAX_DEPTH + 1
    assert format_cid(store.fetched[-1]) in str(caught.value)
    empty = Block(cid_of(DAG_PB, encode_node([], DIRECTORY_DATA)), encode_node([], DIRECTORY_DATA))
    store.add([empty])
    with pytest.raises(DagError, match=f"more than {MAX_DEPTH:,} directories"):
        async for _ in compare(store, (await open_root(store, empty.cid)).node, root.node):
            pass


async def test_tree_of_two_to_the_forty_entries_is_walked_as_far_as_somebody_looks() -> None:
    store, block = Blocks([LEAF]), directory_of(LEAF.cid, 1024)
    store.add([block])
    for _ in range(3):
        block = directory_of(block.cid, 1024)
        store.add([block])
    root = await open_root(store, block.cid)
    async with aclosing(walk(store, root.node)) as entries:
        paths = [path async for path, _ in _first(entries, 5000)]
    assert len(set(paths)) == 5000
    assert len(store.fetched) < 50
    async with aclosing(compare(store, root.node, (await open_root(store, LEAF.cid)).node)) as changes:
        assert len([change async for change in _first(changes, 1000)]) == 1000


async def _first(items, count):  # type: ignore[no-untyped-def]
    for _ in range(count):
        yield await anext(items)


# Extended attributes kept apart


def with_xattrs(store: Blocks, root: CID, entries: int = 0) -> CID:
    file = ATTRS | {"kind": "file", "xattrs": root}
    block = cbor({"attrs": ATTRS | {"xattrs": root}, "entries": [file | {"name": f"{n:05}"} for n in range(entries)]})
    store.add([block])
    return block.cid


MALFORMED = {
    "empty": b"",
    "no list": b"\xa0",
    "of empty lists": b"\x9a" + (64 * CHUNK - 5).to_bytes(4, "big") + b"\x80" * (64 * CHUNK - 5),
    "of numbers": b"\x82\x01\x02",
    "pair of one": b"\x81\x81\x61a",
    "pair of three": b"\x81\x83\x61a\x61b\x61c",
    "huge count": b"\x9b" + b"\xff" * 8,
    "huge length": b"\x81\x82\x7b" + b"\xff" * 8,
    "indefinite length": b"\x9f\x82\x61a\x61b\xff",
    "indefinite text": b"\x81\x82\x7f\x61a\xff\x61b",
    "count not canonical": b"\x98\x01\x82\x61a\x61b",
    "length not canonical": b"\x81\x82\x78\x01a\x61b",
    "no UTF-8": b"\x81\x82\x61\xff\x61b",
    "text as bytes": b"\x81\x82\x42\0a\x61b",
    "a link": b"\x81\x82\x61a\xd8\x2a\x45\0\x01\x55\0\0",
    "twice": b"\x82" + b"\x82\x61a\x61b" * 2,
    "more after it": b"\x81\x82\x61a\x61b\0",
    "cut": b"\x81\x82\x61a\x62b",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_list_of_xattrs_is_refused_by_name_without_its_weight_in_memory(content: bytes) -> None:
    store = Blocks()
    root = file_of(store, content or b"\0")
    with pytest.raises(DagError, match=format_cid(root)):
        await read_meta_dir(store.get, with_xattrs(store, root))


async def test_more_names_of_xattrs_than_a_file_can_have_are_refused() -> None:
    pairs = [[f"user.{n:06}", ""] for n in range(MAX_XATTR_NAMES // 12 + 1)]
    store = Blocks()
    root = file_of(store, dagcbor.encode(pairs))
    with pytest.raises(DagError, match="more than a file can have"):
        await read_meta_dir(store.get, with_xattrs(store, root))
    root = file_of(store, dagcbor.encode(pairs[:-1]))
    assert len((await read_meta_dir(store.get, with_xattrs(store, root)))[0].xattrs) == len(pairs) - 1
    inline = cbor({"attrs": ATTRS | {"xattrs": pairs}, "entries": []})
    store.add([inline])
    with pytest.raises(DagError, match="more than a file can have"):
        await read_meta_dir(store.get, inline.cid)


async def test_xattrs_that_ten_thousand_files_share_are_read_and_kept_once() -> None:
    store = Blocks()
    root = file_of(store, dagcbor.encode([["user.large", "x" * (8 << 20)]]))
    attrs, entries = await read_meta_dir(store.get, with_xattrs(store, root, 10_000))
    assert store.fetched.count(root) <= 2
    assert all(entry.attrs.xattrs is attrs.xattrs for entry in entries)


@pytest.mark.slow
async def test_xattrs_of_one_directory_are_bounded_altogether() -> None:
    store = Blocks()
    shared = "x" * (40 << 20)
    roots = [
        file_of(store, dagcbor.encode([["user.a", shared[n:]]])) for n in range(MAX_XATTRS_APART // (40 << 20) + 1)
    ]
    entries = [ATTRS | {"kind": "file", "name": f"{n:05}", "xattrs": root} for n, root in enumerate(roots)]
    block = cbor({"attrs": ATTRS, "entries": entries})
    store.add([block])
    with pytest.raises(DagError, match="bytes of xattrs"):
        await read_meta_dir(store.get, block.cid)


# Encodings that promise more than they have


@pytest.mark.parametrize("head", [0x5B, 0x7B, 0x9B, 0xBB], ids=["bytes", "text", "list", "map"])
@pytest.mark.parametrize("length", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_cbor_of_a_huge_declared_length_is_refused_at_once(head: int, length: int) -> None:
    data = bytes((head,)) + length.to_bytes(8, "big") + b"\x80"
    with pytest.raises(DagError, match=format_cid(cid_of(DAG_CBOR, data))):
        dagcbor.decode(cid_of(DAG_CBOR, data), data)


@pytest.mark.parametrize("opener", [b"\x81", b"\xa1aa", b"\xd8\x2a"], ids=["lists", "maps", "tags"])
def test_cbor_nested_a_million_deep_is_refused_also_in_a_thread(opener: bytes) -> None:
    import threading

    data = opener * (1_000_000 // len(opener)) + b"\x80"
    refused: list[DagError] = []

    def decode() -> None:
        try:
            dagcbor.decode(cid_of(DAG_CBOR, data), data)
        except DagError as error:
            refused.append(error)

    decode()
    thread = threading.Thread(target=decode)  # with the smaller stack
    thread.start()
    thread.join()
    assert len(refused) == 2
    assert all(error.cid == cid_of(DAG_CBOR, data) for error in refused)


CBOR = {
    "float for a time": b"\xfb" + bytes(8),
    "NaN": b"\xfb\x7f\xf8" + bytes(6),
    "undefined": b"\xf7",
    "tag that is no link": b"\xc1\x00",
    "link without its zero byte": b"\xd8\x2a\x44\x01\x55\0\0",
    "link that is text": b"\xd8\x2a\x61a",
    "keys twice": b"\xa2aa\x01aa\x02",
    "keys out of order": b"\xa2ab\x01aa\x02",
    "key that is a number": b"\xa1\x01\x02",
    "indefinite list": b"\x9f\xff",
    "indefinite map": b"\xbf\xff",
    "indefinite text": b"\x7faa\xff",
    "int not canonical": b"\x18\x01",
    "text that is no UTF-8": b"\x61\xff",
    "more after it": b"\x01\x01",
}


@pytest.mark.parametrize("data", CBOR.values(), ids=CBOR)
@pytest.mark.parametrize("where", ["alone", "in a snapshot"])
def test_cbor_that_is_not_strict_is_refused_by_name(data: bytes, where: str) -> None:
    from fused.dag.meta import decode_snapshot

    cid = cid_of(DAG_CBOR, data)
    if where == "in a snapshot":
        good = dagcbor.encode({"host": "h", "meta": LEAF.cid, "time": 0, "tree": LEAF.cid, "ipfsfs": "1"})
        data = good.replace(b"dtime\x00", b"dtime" + data)
        cid = cid_of(DAG_CBOR, data)
        with pytest.raises(DagError, match=format_cid(cid)):
            decode_snapshot(cid, data)
    elif data != CBOR["float for a time"]:
        with pytest.raises(DagError, match=format_cid(cid)):
            dagcbor.decode(cid, data)
