"""Which bytes of a stored file are not in holes: the same that are not zero, by whole chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused.cid import CID, DAG_PB, RAW, cid_of
from fused.dag.build import directory, file_root
from fused.dag.chunker import CHUNK, chunk_count
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.unixfs import file_data
from fused.errors import BlockNotFound, DagError
from fused.leaves import LeafList
from fused.view import holes
from fused.view.holes import DataRanges

ZEROS = cid_of(RAW, bytes(CHUNK))
WORDS = cid_of(RAW, b"words")


class Blocks:
    """Blocks by CID, which counts what is asked for."""

    def __init__(self, blocks: list[tuple[CID, bytes]]) -> None:
        self.blocks = dict(blocks)
        self.asked = 0

    async def get(self, cid: CID) -> bytes:
        self.asked += 1
        if cid not in self.blocks:
            raise BlockNotFound(cid)
        return self.blocks[cid]


async def ranges(get: Blocks, root: CID, size: int) -> list[range]:
    return [found async for found in DataRanges(get.get, root, size)]


def joined(found: list[range]) -> list[tuple[int, int]]:
    """Ranges as pairs, those that touch made one."""
    pairs: list[tuple[int, int]] = []
    for part in found:
        if pairs and pairs[-1][1] == part.start:
            pairs[-1] = (pairs[-1][0], part.stop)
        else:
            pairs.append((part.start, part.stop))
    return pairs


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([1, 2, 700, 1024, 2048, 3000])), min_size=1, max_size=6),
    st.integers(1, CHUNK),
)
@pytest.mark.slow
async def test_ranges_are_the_chunks_that_are_not_zero(parts: list[tuple[bool, int]], rest: int) -> None:
    leaves = LeafList()
    expected: list[range] = []
    for is_hole, times in parts:
        if not is_hole:
            expected.append(range(len(leaves) * CHUNK, (len(leaves) + times) * CHUNK))
        leaves.append(ZEROS if is_hole else WORDS, times)
    size = len(leaves) * CHUNK + rest
    leaves.append(cid_of(RAW, b"last"))
    expected.append(range(size - rest, size))
    root, blocks, _ = file_root(leaves, size)
    assert joined(await ranges(Blocks(blocks), root, size)) == joined(expected)


async def test_a_hole_of_eight_tebibytes_is_passed_by_at_once() -> None:
    size = 8 << 40
    leaves = LeafList()
    leaves.append(ZEROS, chunk_count(size))
    root, blocks, _ = file_root(leaves, size)
    get = Blocks(blocks)
    assert await ranges(get, root, size) == []
    assert get.asked < 10


async def test_long_data_come_in_several_ranges() -> None:
    size = 1000 * CHUNK
    leaves = LeafList()
    leaves.append(WORDS, 1000)
    root, blocks, _ = file_root(leaves, size)
    found = await ranges(Blocks(blocks), root, size)
    assert joined(found) == [(0, size)]
    assert max(map(len, found)) == holes.AT_ONCE


async def test_a_file_of_one_leaf_is_one_range_unless_it_is_a_hole() -> None:
    assert await ranges(Blocks([]), WORDS, 5) == [range(5)]
    assert await ranges(Blocks([]), ZEROS, CHUNK) == []
    assert await ranges(Blocks([]), cid_of(RAW, b""), 0) == []


async def test_a_hole_with_a_wrong_size_is_left_to_whoever_reads_it() -> None:
    data = encode_node([encode_link(ZEROS, b"", 7)], file_data([7]))
    root = cid_of(DAG_PB, data)
    assert await ranges(Blocks([(root, data)]), root, 7) == [range(7)]


async def test_what_is_not_a_file_is_an_error() -> None:
    cid, blocks, _ = directory([])
    with pytest.raises(DagError, match="not a file"):
        await ranges(Blocks(list(blocks)), cid, 5)


async def test_a_missing_node_is_an_error() -> None:
    with pytest.raises(BlockNotFound):
        await ranges(Blocks([]), cid_of(DAG_PB, b"nowhere"), 5)
