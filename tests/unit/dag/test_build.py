"""Known encodings, and the shape of what is built. Equality with a real Kubo is in tests/kubo."""

from __future__ import annotations

import random

import pytest

from fused.cid import CID, DAG_PB, RAW, cid_of, format_cid
from fused.dag.build import DirEntry, directory, file_root, symlink_node
from fused.dag.chunker import CHUNK, chunk_count, chunk_size, chunks_touched
from fused.dag.dagpb import decode_node
from fused.dag.hamt import hash_name
from fused.errors import NamesCollide

LEAF = cid_of(RAW, b"leaf")


def entry(name: bytes, tsize: int = 4) -> DirEntry:
    return DirEntry(name, LEAF, tsize)


def test_empty_file_is_the_empty_raw_leaf() -> None:
    cid, blocks, tsize = file_root([], 0)
    assert (cid, tsize) == (cid_of(RAW, b""), 0)
    assert blocks == [(cid, b"")]
    assert file_root([cid], 0) == (cid, [], 0)


def test_file_of_one_chunk_is_its_leaf_and_makes_no_block() -> None:
    assert file_root([LEAF], 4) == (LEAF, [], 4)
    assert file_root([LEAF], CHUNK) == (LEAF, [], CHUNK)


@pytest.mark.parametrize(("leaves", "size"), [(0, 1), (1, CHUNK + 1), (2, CHUNK), (2, 0)])
def test_leaves_that_do_not_fit_the_size_are_a_mistake_of_the_caller(leaves: int, size: int) -> None:
    with pytest.raises(ValueError, match="leaves"):
        file_root([LEAF] * leaves, size)


def test_file_node_says_the_size_of_each_chunk() -> None:
    cid, blocks, tsize = file_root([LEAF, LEAF], CHUNK + 4)
    assert [block.cid for block in blocks] == [cid]
    node = decode_node(cid, blocks[0].data)
    assert [link.tsize for link in node.links] == [CHUNK, 4]
    assert node.data == bytes.fromhex("080218848040208080402004")
    assert tsize == CHUNK + 4 + len(blocks[0].data)


@pytest.mark.parametrize(("count", "nodes"), [(1024, 1), (1025, 3), (2048, 3), (2049, 4), (1024**2 + 1, 1025 + 2 + 1)])
@pytest.mark.slow
def test_file_tree_is_balanced_and_filled_from_the_left(count: int, nodes: int) -> None:
    leaves = [CID(LEAF[:4] + number.to_bytes(32, "big")) for number in range(count)]
    root, blocks, _ = file_root(leaves, count * CHUNK)
    assert len(blocks) == nodes
    assert blocks[-1].cid == root  # children first
    depth, cid, by_cid = 0, root, dict(blocks)
    while cid in by_cid:
        cid = decode_node(cid, by_cid[cid]).links[-1].cid
        depth += 1
    assert depth == (1 if count <= 1024 else 2 if count <= 1024**2 else 3)  # the last leaf is as deep as the first


def test_symbolic_link_known_encoding() -> None:
    cid, block, tsize = symlink_node(b"a")
    assert block.data == bytes.fromhex("0a050804120161")
    assert (cid, tsize) == (cid_of(DAG_PB, block.data), 7)


def test_empty_directory_known_cid() -> None:
    cid, blocks, tsize = directory([])
    assert format_cid(cid) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    assert (len(blocks), tsize) == (1, 4)


def test_directory_does_not_depend_on_the_order_of_its_entries() -> None:
    entries = [entry(b"%d" % number) for number in range(3000)]
    shuffled = random.Random(0).sample(entries, len(entries))
    assert directory(entries) == directory(shuffled)
    many = [entry(b"%d" % number) for number in range(9000)]
    assert directory(many) == directory(random.Random(0).sample(many, len(many)))
    assert len(directory(many)[1]) > 256  # it was sharded


def test_links_are_sorted_by_bytes() -> None:
    names = ["ü".encode(), b"z", b"Z", b"\xff", b"a", b"ab", b"a-"]
    cid, blocks, _ = directory(entry(name) for name in names)
    assert [link.name for link in decode_node(cid, blocks[0].data).links] == sorted(names)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0"])
def test_name_that_no_directory_can_have_is_a_mistake_of_the_caller(name: bytes) -> None:
    with pytest.raises(ValueError, match="entry name"):
        directory([entry(name)])


def test_name_twice_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="twice"):
        directory([entry(b"a"), entry(b"b"), DirEntry(b"a", cid_of(RAW, b"other"), 5)])


def test_long_names_and_large_sizes_take_longer_fields() -> None:
    entries = [entry(b"n" * length, 1 << size) for length in (1, 77, 78, 127, 128, 255, 5000) for size in (0, 7, 62)][
        ::3
    ]
    entries += [entry(b"m" * 77, (1 << 63) - 1), entry(b"m" * 86, (1 << 63) - 1)]
    cid, blocks, _ = directory(entries)
    assert [DirEntry(link.name, link.cid, link.tsize) for link in decode_node(cid, blocks[0].data).links] == sorted(
        entries
    )


@pytest.mark.parametrize(("tsize", "written"), [(2**63 - 1, 2**63 - 1), (2**63, 0), (2**64 - 1, 0), (2**64 + 5, 5)])
def test_sizes_that_overflow_are_written_as_kubo_writes_them(tsize: int, written: int) -> None:
    cid, blocks, _ = directory([entry(b"a", tsize)])
    assert decode_node(cid, blocks[0].data).links[0].tsize == written


def test_every_block_goes_through_the_seal() -> None:
    sealed: list[CID] = []

    def seal(codec: int, data: bytes) -> tuple[CID, bytes]:
        cid = cid_of(codec, b"sealed" + data)
        sealed.append(cid)
        return cid, b"sealed" + data

    made = [*file_root([], 0, seal)[1], *file_root([LEAF] * 1025, 1025 * CHUNK, seal)[1], symlink_node(b"x", seal)[1]]
    made += directory([entry(b"x")], seal)[1] + directory([entry(b"%d" % n) for n in range(9000)], seal)[1]
    assert [block.cid for block in made] == sealed
    assert all(block.data.startswith(b"sealed") for block in made)


# The hash takes 16 bytes a step, and each step can be undone: choose the first 16 bytes of the second name freely, and
# solve for the 16 that lead to the same state as the first name's.
COLLIDING = (b"two file names, one hash value!!", b'another 00000000\x14M"]\xbe\x8d=~\xdd{\xe8\x95tz\x19\x90')


def test_names_with_the_same_hash_are_named_when_a_directory_is_sharded() -> None:
    assert hash_name(COLLIDING[0]) == hash_name(COLLIDING[1])
    colliding = [entry(name) for name in COLLIDING]
    directory(colliding)  # a plain directory doesn't mind
    with pytest.raises(NamesCollide) as caught:
        directory([*colliding, *(entry(b"%d" % number) for number in range(9000))])
    assert set(caught.value.names) == set(COLLIDING)


def test_chunk_arithmetic() -> None:
    assert [chunk_count(size) for size in (0, 1, CHUNK, CHUNK + 1)] == [1, 1, 1, 2]
    assert [chunk_size(CHUNK + 1, index) for index in (0, 1)] == [CHUNK, 1]
    assert chunks_touched(0, 0) == range(0)
    assert chunks_touched(CHUNK - 1, 1) == range(1)
    assert chunks_touched(CHUNK - 1, 2) == range(2)
    assert chunks_touched(CHUNK, CHUNK) == range(1, 2)
