"""A list of leaves that counts equal neighbours is a list of leaves, in memory, in the index and in a file's tree."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused.cid import CID, DAG_PB, RAW, cid_of
from fused.dag.build import LINKS_PER_NODE, file_root
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.unixfs import file_data
from fused.index.index import pack_leaves, unpack_leaves
from fused.leaves import LeafList, runs_of

CIDS = [cid_of(RAW, bytes([number])) for number in range(3)]
ZEROS = cid_of(RAW, bytes(CHUNK))

runs = st.lists(st.tuples(st.sampled_from(CIDS), st.integers(0, 5)), max_size=8)


def made_of(parts: list[tuple[CID, int]]) -> tuple[LeafList, list[CID]]:
    """The same leaves as a list of ours, made run by run, and as a plain one."""
    ours = LeafList()
    for cid, times in parts:
        ours.append(cid, times)
    return ours, [cid for cid, times in parts for _ in range(times)]


@given(runs)
def test_it_is_the_same_as_a_plain_list(parts: list[tuple[CID, int]]) -> None:
    ours, plain = made_of(parts)
    assert list(ours) == plain
    assert len(ours) == len(plain)
    assert [ours[i] for i in range(len(plain))] == plain
    assert [ours[-i] for i in range(1, len(plain) + 1)] == plain[::-1]
    assert ours[1:4] == plain[1:4]
    assert ours == LeafList(plain)
    with pytest.raises(IndexError):
        ours[len(plain)]


@given(runs)
def test_neighbours_in_its_runs_differ(parts: list[tuple[CID, int]]) -> None:
    ours, plain = made_of(parts)
    found = list(ours.runs())
    assert [cid for cid, times in found for _ in range(times)] == plain
    assert all(one.cid != other.cid for one, other in pairwise(found))
    assert list(runs_of(plain)) == found


@given(runs, runs, st.integers(0, 40), st.integers(0, 40))
def test_a_part_of_another_list_can_be_added(
    first: list[tuple[CID, int]], second: list[tuple[CID, int]], start: int, stop: int
) -> None:
    ours, plain = made_of(first)
    other, other_plain = made_of(second)
    ours.extend_from(other, start, stop)
    assert list(ours) == plain + other_plain[start:stop]


@given(runs)
def test_the_index_gives_back_what_it_was_given(parts: list[tuple[CID, int]]) -> None:
    ours, plain = made_of(parts)
    assert list(unpack_leaves(pack_leaves(ours))) == plain


def test_the_index_keeps_repeated_leaves_in_few_bytes_and_others_as_before() -> None:
    ours = LeafList()
    for cid, times in ((CIDS[0], 1), (CIDS[1], 10**9), (CIDS[2], 1)):
        ours.append(cid, times)
    packed = pack_leaves(ours)
    assert packed is not None
    assert len(packed) < 150
    assert len(unpack_leaves(packed)) == 10**9 + 2
    assert pack_leaves([CIDS[0], CIDS[1]]) == b"".join(bytes([len(cid)]) + cid for cid in CIDS[:2])
    assert unpack_leaves(pack_leaves([])) == ()


def spelled_out(leaves: list[CID], size: int) -> CID:
    """The root of the balanced tree, made node by node."""
    level = [(cid, CHUNK, CHUNK) for cid in leaves]
    rest = size - (len(leaves) - 1) * CHUNK
    level[-1] = (leaves[-1], rest, rest)
    while len(level) > 1:
        above = []
        for at in range(0, len(level), LINKS_PER_NODE):
            group = level[at : at + LINKS_PER_NODE]
            links = [encode_link(cid, b"", tsize) for cid, _, tsize in group]
            data = encode_node(links, file_data([content for _, content, _ in group]))
            total = len(data) + sum(tsize for _, _, tsize in group)
            above.append((cid_of(DAG_PB, data), sum(content for _, content, _ in group), total))
        level = above
    return level[0][0]


@pytest.mark.parametrize("rest", [CHUNK, 5])
@pytest.mark.parametrize(
    "parts",
    [
        [(CIDS[0], 1)],
        [(CIDS[0], 2)],
        [(CIDS[0], 1024)],
        [(CIDS[0], 1025)],
        [(CIDS[0], 3000), (CIDS[1], 1)],
        [(CIDS[0], 3), (CIDS[1], 5000), (CIDS[2], 1)],
        [(CIDS[0], 1024), (CIDS[1], 2048), (CIDS[2], 1024)],
        [(CIDS[0], 1024 * 1024 + 7)],
    ],
    ids=lambda parts: "+".join(str(times) for _, times in parts) if isinstance(parts, list) else None,
)
@pytest.mark.slow
def test_the_tree_over_runs_is_the_tree_over_their_leaves(parts: list[tuple[CID, int]], rest: int) -> None:
    ours, plain = made_of([*parts, (cid_of(RAW, b"last"), 1)])
    size = (len(plain) - 1) * CHUNK + rest
    root, blocks, _ = file_root(ours, size)
    assert root == spelled_out(plain, size)
    assert blocks[-1].cid == root  # children first


def test_a_hole_of_a_petabyte_is_a_handful_of_blocks() -> None:
    size = 999_999_999_999_999
    leaves = LeafList()
    leaves.append(ZEROS, size // CHUNK)
    leaves.append(cid_of(RAW, bytes(size % CHUNK)))
    _, blocks, tsize = file_root(leaves, size)
    assert len(blocks) <= 6
    assert tsize > size
