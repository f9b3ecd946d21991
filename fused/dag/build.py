"""Nodes of a UnixFS tree from what lies below them, byte for byte as Kubo makes them under `unixfs-v1-2025`.

Profile: IPIP-499, and kubo config/profile.go. Leaves, the bulk of the bytes, are made by the caller
(`seal(RAW, chunk)`); everything here works on CIDs and sizes and holds no file content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fused.cid import CID, DAG_PB, RAW
from fused.dag.chunker import CHUNK, chunk_count
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.hamt import build_hamt
from fused.dag.seal import Seal, plain_seal
from fused.dag.unixfs import DIRECTORY_DATA, file_data, symlink_data
from fused.leaves import runs_of
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LINKS_PER_NODE = 1024
"""Children of an inner file node."""

SHARD_ABOVE = 256 << 10
"""Bytes of the encoded plain directory above which it is sharded; with exactly so many it stays plain
(boxo unixfs/io/directory.go, needsToSwitchByBlockSize)."""

_EMPTY_DIRECTORY_SIZE = len(encode_node([], DIRECTORY_DATA))


class DirEntry(NamedTuple):
    """One name in a directory. `tsize` is the cumulative size of the DAG at `cid`, as the builders here return it."""

    name: bytes
    cid: CID
    tsize: int


class _Nodes(NamedTuple):
    """Equal nodes beside each other on one level: each has so much content and so many bytes of DAG below it."""

    cid: CID
    content: int
    tsize: int
    times: int


def file_root(leaves: Sequence[CID], size: int, seal: Seal = plain_seal) -> tuple[CID, list[Block], int]:
    """The balanced tree over a file's leaves: its root, the new blocks (children first), its tsize.

    `leaves` are the raw leaves of the CHUNK-sized pieces of a file of `size` bytes. A file of one piece is its
    leaf, and no block is made. An empty file is the empty raw leaf, which is made here if `leaves` is empty.
    Nodes over nothing but the same leaf, as holes have them, are made once. A LeafList need not be spelled out.
    """
    blocks: list[Block] = []
    if not leaves and size == 0:
        cid, data = seal(RAW, b"")
        return cid, [Block(cid, data)], len(data)
    if len(leaves) != chunk_count(size):
        raise ValueError(f"a file of {size} bytes has {chunk_count(size)} leaves, not {len(leaves)}")
    level = [_Nodes(cid, CHUNK, CHUNK, times) for cid, times in runs_of(leaves)]
    rest = size - (len(leaves) - 1) * CHUNK
    if rest != CHUNK:  # the last leaf is smaller
        last = level.pop()
        level += [last._replace(times=last.times - 1), _Nodes(last.cid, rest, rest, 1)]
    while sum(nodes.times for nodes in level) > 1:
        level = list(_level_above(level, blocks, seal))
    return level[-1].cid, blocks, level[-1].tsize


def _level_above(level: list[_Nodes], blocks: list[Block], seal: Seal) -> Iterator[_Nodes]:
    """The nodes over `level`, filled from the left; their blocks go to `blocks`."""

    def node(children: list[_Nodes], times: int) -> _Nodes:
        links: list[bytes] = []
        sizes: list[int] = []
        for child in children:
            links += [encode_link(child.cid, b"", child.tsize)] * child.times
            sizes += [child.content] * child.times
        cid, data = seal(DAG_PB, encode_node(links, file_data(sizes)))
        blocks.append(Block(cid, data))
        below = sum(child.tsize * child.times for child in children)
        return _Nodes(cid, sum(sizes), len(data) + below, times)

    children: list[_Nodes] = []
    room = LINKS_PER_NODE
    for nodes in level:
        left = nodes.times
        while left:
            if room == LINKS_PER_NODE and left >= LINKS_PER_NODE:
                yield node([nodes._replace(times=LINKS_PER_NODE)], left // LINKS_PER_NODE)
                left %= LINKS_PER_NODE
                continue
            taken = min(left, room)
            children.append(nodes._replace(times=taken))
            left, room = left - taken, room - taken
            if room == 0:
                yield node(children, 1)
                children, room = [], LINKS_PER_NODE
    if children:
        yield node(children, 1)


def symlink_node(target: bytes, seal: Seal = plain_seal) -> tuple[CID, Block, int]:
    """The node of a symbolic link."""
    cid, data = seal(DAG_PB, encode_node([], symlink_data(target)))
    return cid, Block(cid, data), len(data)


def directory(entries: Iterable[DirEntry], seal: Seal = plain_seal) -> tuple[CID, list[Block], int]:
    """The node of a directory, or the HAMT of a large one: root, blocks (children first), tsize.

    `entries` come in any order. Raises ValueError for a name that no directory can have or that comes twice, and
    NamesCollide for names that can't be in one HAMT.
    """
    ordered = sorted(entries)
    previous = None
    for name, _, _ in ordered:
        if name == previous or not is_entry_name(name):
            raise ValueError(f"a directory with the entry name {name!r}" + (" twice" if name == previous else ""))
        previous = name
    links = [encode_link(cid, name, tsize) for name, cid, tsize in ordered]
    if _EMPTY_DIRECTORY_SIZE + sum(map(len, links)) > SHARD_ABOVE:
        return build_hamt(ordered, seal)
    cid, data = seal(DAG_PB, encode_node(links, DIRECTORY_DATA))
    return cid, [Block(cid, data)], len(data) + sum(entry.tsize for entry in ordered)


def is_entry_name(name: bytes) -> bool:
    """Whether a directory can have an entry of this name."""
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name
