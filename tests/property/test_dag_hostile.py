"""No bytes whatever make a reader raise anything but DagError, hang, or take blocks out of proportion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused.cid import CID, DAG_CBOR, DAG_PB, RAW, cid_from_bytes, cid_of, encode_varint, parse_cid
from fused.dag import dagcbor, walk
from fused.dag.build import DirEntry, directory, file_root, symlink_node
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import decode_node, encode_link, encode_node
from fused.dag.meta import Attrs, MetaEntry, Snapshot, decode_snapshot, encode_meta_dir, encode_snapshot, read_meta_dir
from fused.dag.node import decode
from fused.dag.unixfs import file_data, shard_data
from fused.errors import BlockNotFound, DagError, PathNotInDag, UsageError
from fused.types import Block
from tests.support.blocks import Blocks

LEAF = Block(cid_of(RAW, b"leaf"), b"leaf")


def valid_blocks() -> list[Block]:
    """One of everything that we write."""
    entries = [DirEntry(b"%d" % n, cid_of(RAW, b"%d" % n), n) for n in range(40)]
    meta = [MetaEntry(b"%d" % n, Attrs("file", 0o644, 0, 0, n, xattrs=((b"a", b"\xff"),)), None) for n in range(5)]
    sub = MetaEntry(b"sub", Attrs("dir", 0, 0, 0, 0), LEAF.cid)
    many = [DirEntry(b"%0100d" % n, LEAF.cid, n) for n in range(3000)]
    return [
        *file_root([LEAF.cid] * 3, 3 * CHUNK)[1],
        symlink_node(b"target")[1],
        *directory(entries)[1],
        *directory(many)[1][-2:],
        *encode_meta_dir(Attrs("dir", 0o755, 0, 0, 0), [*meta, sub])[1],
        encode_snapshot(Snapshot(LEAF.cid, LEAF.cid, 1, "host", "1")),
    ]


VALID = valid_blocks()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid block with some bytes changed, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(VALID)).data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(data), 400) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=6))
    return bytes(data)


async def read_all(store: Blocks, root: CID) -> None:
    """Every way to read `root`; each may refuse, in the way that its docstring says."""
    refusals = (DagError, BlockNotFound, PathNotInDag)
    for read in (
        lambda: walk.stat_node(store.get, root),
        lambda: walk.read_link(store.get, root),
        lambda: walk.lookup(store.get, root, b"1"),
        lambda: walk.resolve(store.get, root, b"1/2"),
        lambda: walk.read_range(store.get, root, 2, 10),
        lambda: walk.read_range(store.get, root, CHUNK - 1, 10, get_many=store.get_many),
        lambda: read_meta_dir(store.get, root),
    ):
        with suppress(*refusals):
            await read()
    for listing in (walk.list_directory, walk.leaves, walk.read_file):
        steps = listing(store.get, root)
        with suppress(StopAsyncIteration, *refusals):
            for _ in range(1000):
                await anext(steps)
    for decoder in (decode, walk.links_of, decode_snapshot, decode_node, dagcbor.decode):
        with suppress(DagError):
            decoder(root, store.data[root])


@given(st.one_of(mutated(), st.binary(max_size=200)), st.sampled_from([DAG_PB, DAG_CBOR, RAW]))
async def test_broken_blocks_are_refused_in_one_way(data: bytes, codec: int) -> None:
    root = cid_of(codec, data)
    await read_all(Blocks([Block(root, data), LEAF, *VALID]), root)


@st.composite
def knots(draw: st.DrawFn) -> tuple[list[Block], CID]:
    """A DAG of few blocks, linked every which way, each saying what it likes about those below."""
    blocks = [LEAF, Block(cid_of(RAW, b""), b"")]
    for _ in range(draw(st.integers(1, 12))):
        below = draw(st.lists(st.sampled_from([block.cid for block in blocks]), max_size=8))
        if draw(st.booleans()):
            sizes = draw(st.lists(st.sampled_from([0, 1, 4, 8, 1 << 40]), min_size=len(below), max_size=len(below)))
            data = encode_node([encode_link(cid, b"", 0) for cid in below], file_data(sizes))
        else:
            links = [
                encode_link(cid, b"%02X" % slot + draw(st.sampled_from([b"", b"x"])), 0)
                for slot, cid in enumerate(below)
            ]
            data = encode_node(links, shard_data((1 << len(below)) - 1, 256))
        blocks.append(Block(cid_of(DAG_PB, data), data))
    return blocks, blocks[-1].cid


@given(knots())
async def test_knotted_trees_end(knot: tuple[list[Block], CID]) -> None:
    blocks, root = knot
    store = Blocks(blocks)
    await read_all(store, root)
    assert len(store.fetched) < 20_000  # bounded by the thousand steps that each listing takes


@given(st.binary(max_size=60))
def test_bytes_are_a_cid_or_refused(raw: bytes) -> None:
    try:
        cid = cid_from_bytes(raw)
    except DagError:
        return
    assert cid_from_bytes(cid) == cid


@given(st.one_of(st.text(max_size=80), st.binary(max_size=40).map(lambda raw: "f" + raw.hex())))
def test_text_is_a_cid_or_refused(text: str) -> None:
    try:
        parse_cid(text)
    except UsageError:
        return


@pytest.mark.parametrize("make", [encode_varint, lambda n: b"\xff" * n], ids=["varint", "ones"])
def test_lengths_of_every_size_are_refused_without_memory(make: Callable[[int], bytes]) -> None:
    for power in islice(range(70), 0, None):
        data = b"\x0a" + make(1 << power if make is encode_varint else power)
        if data != b"\x0a\x00":
            with pytest.raises(DagError):
                decode_node(cid_of(DAG_PB, data), data)
