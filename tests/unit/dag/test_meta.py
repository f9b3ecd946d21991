"""The snapshot object and the meta tree: there and back, paging, and what is refused."""

from __future__ import annotations

import os

import libipld
import pytest

from fused.cid import CID, DAG_CBOR, RAW, cid_of, format_cid
from fused.dag import dagcbor
from fused.dag.attrs import MAX_INLINE_XATTRS
from fused.dag.meta import (
    MAX_PAGE_BYTES,
    Attrs,
    MetaEntry,
    Snapshot,
    decode_snapshot,
    encode_meta_dir,
    encode_snapshot,
    read_meta_dir,
)
from fused.dag.walk import links_of
from fused.errors import DagError
from fused.types import Block
from tests.support.blocks import Blocks

TREE, META = cid_of(RAW, b"tree"), cid_of(DAG_CBOR, b"meta")
DIR = Attrs("dir", 0o755, 0, 0, 0)
FILE = Attrs("file", 0o644, 1000, 1000, 1_700_000_000_123_456_789, size=5)
SNAPSHOT = Snapshot(TREE, META, 1_700_000_000_123_456_789, "host-ü", "0.1.0")


def block_of(value: object) -> Block:
    data = dagcbor.encode(value)
    return Block(cid_of(DAG_CBOR, data), data)


def files(count: int) -> list[MetaEntry]:
    return [MetaEntry(b"file-%06d" % number, FILE, None) for number in range(count)]


async def there_and_back(attrs: Attrs, entries: list[MetaEntry]) -> None:
    root, blocks = encode_meta_dir(attrs, entries)
    assert await read_meta_dir(Blocks(blocks).get, root) == (attrs, sorted(entries, key=lambda entry: entry.name))


# --- snapshot ---------------------------------------------------------------------------------------------------


def test_snapshot_there_and_back_with_the_documented_keys() -> None:
    cid, data = encode_snapshot(SNAPSHOT)
    assert decode_snapshot(cid, data) == SNAPSHOT
    assert libipld.decode_dag_cbor(data).keys() == {"tree", "meta", "time", "host", "ipfsfs"}
    assert links_of(cid, data) == [META, TREE]  # in the order of the keys


@pytest.mark.parametrize(
    "change",
    [
        {"tree": "text"},
        {"tree": dagcbor.literal(TREE)},
        {"time": "yesterday"},
        {"time": True},
        {"time": 1.5},
        {"host": dagcbor.literal(b"\xff")},
        {"extra": 1},
        {"meta": None},
    ],
)
def test_snapshot_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    value = {"tree": TREE, "meta": META, "time": 1, "host": "h", "ipfsfs": "0"} | change
    block = block_of(value)
    with pytest.raises(DagError, match=f"{format_cid(block.cid)}: not a snapshot"):
        decode_snapshot(*block)
    del value["host"]
    with pytest.raises(DagError, match="not a snapshot"):
        decode_snapshot(*block_of(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa0\xa0",
        b"\x18\x01",  # a number longer than it need be
        b"\xfa\x3f\x80\x00\x00",  # a float of 32 bits
        b"\x81" * 100_000 + b"\x01",
        b"\x9b\x7f" + b"\xff" * 7,
        b"\x58\x24" + TREE,  # bytes that look like a link
        b"\xa2\x61b\x01\x61a\x01",  # keys out of order
        bytes(3 << 20),
    ],
    ids=["empty", "trailing", "long int", "short float", "deep", "huge", "false link", "order", "large"],
)
def test_what_is_not_canonical_dag_cbor_is_refused(data: bytes) -> None:
    cid = cid_of(DAG_CBOR, data)
    with pytest.raises(DagError, match=format_cid(cid)):
        dagcbor.decode(cid, data)


# --- directories ------------------------------------------------------------------------------------------------


async def test_every_attribute_comes_back() -> None:
    sub = cid_of(DAG_CBOR, b"sub")
    xattrs = ((b"user.text", "ü".encode()), (b"user.\xff", b"\0\xff"), (b"user.cid", bytes(TREE)), (b"a", b""))
    await there_and_back(
        Attrs("dir", 0o7777, 2**32 - 1, 2**32 - 1, -1, xattrs=tuple(sorted(xattrs))),
        [
            MetaEntry(b"sub", DIR, sub),
            MetaEntry(b"\xff\n", Attrs("file", 0, 1, 2, -(10**18) - 1, size=2**63 - 1, hardlink=2**64 - 1), None),
            MetaEntry("ü".encode(), Attrs("link", 0o777, 0, 0, 2**63 * 10**9, size=7), None),
            MetaEntry(b"chr", Attrs("chr", 0o600, 0, 0, 0, rdev=os.makedev(1, 3)), None),
            MetaEntry(b"blk", Attrs("blk", 0o600, 0, 0, 0, rdev=2**64 - 1), None),
            MetaEntry(b"fifo", Attrs("fifo", 0o600, 0, 0, 0, hardlink=0), None),
            MetaEntry(b"sock", Attrs("sock", 0o600, 0, 0, 0), None),
            MetaEntry(bytes(TREE).replace(b"/", b"").replace(b"\0", b""), FILE, None),
        ],
    )


@pytest.mark.parametrize("count", [0, 1, 256, 257, 5000])
async def test_directories_of_every_size_come_back(count: int) -> None:
    await there_and_back(DIR, files(count))


def test_encoding_does_not_depend_on_the_order() -> None:
    assert encode_meta_dir(DIR, files(1000)) == encode_meta_dir(DIR, files(1000)[::-1])


def test_one_name_more_changes_few_pages() -> None:
    _, before = encode_meta_dir(DIR, files(20_000))
    _, after = encode_meta_dir(DIR, [*files(20_000), MetaEntry(b"file-012345-more", FILE, None)])
    assert len(before) > 50
    assert len(set(after) - set(before)) <= 4


def test_links_reach_subdirectories_and_pages() -> None:
    subs = [MetaEntry(b"%d" % n, DIR, cid_of(DAG_CBOR, b"%d" % n)) for n in range(600)]
    root, blocks = encode_meta_dir(DIR, subs)
    linked = {link for block in blocks for link in links_of(*block)}
    assert linked == {sub.child for sub in subs} | {block.cid for block in blocks if block.cid != root}


async def test_large_xattrs_move_out_of_the_page() -> None:
    large = Attrs("file", 0, 0, 0, 0, xattrs=tuple((b"user.%03d" % n, os.urandom(60_000)) for n in range(40)))
    edge = Attrs("file", 0, 0, 0, 0, xattrs=((b"user.x", b"x" * (MAX_INLINE_XATTRS - 6)),))
    entries = [MetaEntry(b"large", large, None), *(MetaEntry(b"%d" % n, edge, None) for n in range(100))]
    await there_and_back(large_dir := Attrs("dir", 0, 0, 0, 0, xattrs=large.xattrs), entries)
    _, blocks = encode_meta_dir(large_dir, entries)
    assert max(len(data) for cid, data in blocks if cid[1] == DAG_CBOR) <= MAX_PAGE_BYTES + 1024
    assert max(len(data) for _, data in blocks) <= 1 << 20


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_entry_without_the_node_of_its_kind_is_a_mistake_of_the_caller(kind: str) -> None:
    attrs, child = (FILE, META) if kind == "file" else (DIR, None)
    with pytest.raises(ValueError, match="node"):
        encode_meta_dir(DIR, [MetaEntry(b"x", attrs, child)])


# --- what is refused --------------------------------------------------------------------------------------------

ATTRS: dict[str, object] = {"kind": "dir", "mode": 0, "uid": 0, "gid": 0, "mtime": [0, 0]}
ENTRY: dict[str, object] = ATTRS | {"kind": "file", "name": "a"}

HOSTILE: dict[str, object] = {
    "not a map": [],
    "no attrs": {"entries": []},
    "nothing in it": {"attrs": ATTRS},
    "entries and pages": {"attrs": ATTRS, "entries": [], "pages": []},
    "attrs of a file": {"attrs": ATTRS | {"kind": "file"}, "entries": []},
    "unknown kind": {"attrs": ATTRS, "entries": [ENTRY | {"kind": "door"}]},
    "kind of another type": {"attrs": ATTRS, "entries": [ENTRY | {"kind": [1]}]},
    "mode": {"attrs": ATTRS | {"mode": 0o10000}, "entries": []},
    "negative uid": {"attrs": ATTRS | {"uid": -1}, "entries": []},
    "mtime": {"attrs": ATTRS | {"mtime": [0, 10**9]}, "entries": []},
    "mtime of one": {"attrs": ATTRS | {"mtime": [0]}, "entries": []},
    "unknown attribute": {"attrs": ATTRS | {"colour": 1}, "entries": []},
    "xattr twice": {"attrs": ATTRS | {"xattrs": [["a", "x"], ["a", "y"]]}, "entries": []},
    "xattr of three": {"attrs": ATTRS | {"xattrs": [["a", "x", "y"]]}, "entries": []},
    "entry not a map": {"attrs": ATTRS, "entries": [1]},
    "no name": {"attrs": ATTRS, "entries": [ATTRS]},
    "name twice": {"attrs": ATTRS, "entries": [ENTRY, ENTRY]},
    "names out of order": {"attrs": ATTRS, "entries": [ENTRY | {"name": "b"}, ENTRY]},
    "name with slash": {"attrs": ATTRS, "entries": [ENTRY | {"name": "../a"}]},
    "name ..": {"attrs": ATTRS, "entries": [ENTRY | {"name": ".."}]},
    "name with zero byte": {"attrs": ATTRS, "entries": [ENTRY | {"name": "a\0"}]},
    "text as bytes": {"attrs": ATTRS, "entries": [ENTRY | {"name": dagcbor.literal(b"a")}]},
    "name a link": {"attrs": ATTRS, "entries": [ENTRY | {"name": META}]},
    "file with node": {"attrs": ATTRS, "entries": [ENTRY | {"node": META}]},
    "directory without": {"attrs": ATTRS, "entries": [ENTRY | {"kind": "dir"}]},
    "node no link": {"attrs": ATTRS, "entries": [ENTRY | {"kind": "dir", "node": "x"}]},
    "page no link": {"attrs": ATTRS, "pages": ["x"]},
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
async def test_malformed_directory_is_refused(value: object) -> None:
    block = block_of(value)
    with pytest.raises(DagError, match=format_cid(block.cid)) as caught:
        await read_meta_dir(Blocks([block]).get, block.cid)
    assert caught.value.cid == block.cid


async def refused_pages(pages: list[Block], others: list[Block], why: str) -> Blocks:
    root = block_of({"attrs": ATTRS, "pages": [page.cid for page in pages]})
    store = Blocks([root, *pages, *others])
    with pytest.raises(DagError, match=why):
        await read_meta_dir(store.get, root.cid)
    return store


async def test_pages_linked_crosswise_are_refused_soon() -> None:
    page = block_of({"entries": [ENTRY]})
    await refused_pages([page, page], [], "twice or out of order")
    await refused_pages([block_of({"entries": []})], [], "empty page")
    others = [page, *(page := block_of({"pages": [page.cid] * 100}) for _ in range(6))]
    assert len((await refused_pages([page], others, "twice or out of order")).fetched) < 12


async def test_pages_nested_too_deeply_are_refused() -> None:
    page = block_of({"entries": [ENTRY]})
    others = [page, *(page := block_of({"pages": [page.cid]}) for _ in range(12))]
    await refused_pages([page], others, "too deeply")


async def test_a_wrong_page_is_named() -> None:
    page = block_of({"entries": [ENTRY | {"mode": -1}]})
    await refused_pages([page], [], format_cid(page.cid))
    page = block_of({"attrs": ATTRS, "entries": [ENTRY]})
    await refused_pages([page], [], format_cid(page.cid))


async def test_xattrs_kept_apart_that_claim_too_much_are_not_read() -> None:
    from fused.dag.build import file_root

    leaf = cid_of(RAW, bytes(1 << 20))
    root, blocks, _ = file_root([leaf] * 100, 100 << 20)
    directory = block_of({"attrs": ATTRS | {"xattrs": CID(root)}, "entries": []})
    store = Blocks([directory, *blocks])
    with pytest.raises(DagError, match="bytes of xattrs"):
        await read_meta_dir(store.get, directory.cid)
    assert leaf not in store.fetched
