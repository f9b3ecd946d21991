"""One block to what it is in a file tree: a file's node, a directory, a shard or a symbolic link.

Everything that a block can get wrong on its own is refused here; what only shows between blocks (a child of
another size than its parent says, a name in the wrong shard) is refused in `walk.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from fused.cid import CID, DAG_CBOR, DAG_PB, RAW, codec_of, inline_block
from fused.dag import dagcbor
from fused.dag.build import DirEntry, is_entry_name
from fused.dag.dagpb import MAX_BLOCK, PBNode, decode_node
from fused.dag.hamt import Shard, decode_shard
from fused.dag.unixfs import MAX_SIZE, Kind, UnixFS, decode_unixfs
from fused.errors import DagError

MAX_TARGET = 4095
"""Bytes in a symbolic link's target: PATH_MAX without the zero byte (symlink(7))."""

Get = Callable[[CID], Awaitable[bytes]]
"""Fetches a block: verified, unsealed bytes. Raises what its store raises."""

GetMany = Callable[[Sequence[CID]], Awaitable[Mapping[CID, bytes]]]
"""The same for many blocks at once; the answer has all of them."""


@dataclass(frozen=True, slots=True)
class FileNode:
    """A file, or a part of one: the bytes in `data`, then those of the children (CID, bytes in it) in order."""

    data: bytes
    children: tuple[tuple[CID, int], ...]
    size: int


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    """A plain directory. Names are unique and valid; their order is the writer's."""

    entries: tuple[DirEntry, ...]


@dataclass(frozen=True, slots=True)
class SymlinkNode:
    """A symbolic link."""

    target: bytes


Node = FileNode | DirectoryNode | Shard | SymlinkNode


def decode(cid: CID, block: bytes) -> Node:
    """What `block` is. Raises DagError if it is no part of a file tree, or a broken one."""
    codec = codec_of(cid)
    if codec == RAW:
        if len(block) > MAX_BLOCK:
            raise DagError(f"{len(block)} bytes in one block; at most {MAX_BLOCK} are allowed", cid)
        return FileNode(block, (), len(block))
    if codec != DAG_PB:
        raise DagError(f"a block with codec {codec:#x} is not part of a file tree", cid)
    node = decode_node(cid, block)
    fs = decode_unixfs(cid, node.data)
    match fs.kind:
        case Kind.FILE | Kind.RAW:
            return _file(cid, node, fs)
        case Kind.DIRECTORY:
            return _directory(cid, node)
        case Kind.HAMT_SHARD:
            return decode_shard(cid, node, fs)
        case Kind.SYMLINK:
            return SymlinkNode(_target(cid, node, fs))
        case _:
            raise DagError("a UnixFS metadata node, which nobody writes any more", cid)


async def fetch_node(get: Get, cid: CID) -> Node:
    """What the block at `cid` is: from the CID itself if it is an identity CID (Kubo's `--inline`), else from `get`."""
    inline = inline_block(cid)
    return decode(cid, await get(cid) if inline is None else inline)


def links_of(cid: CID, block: bytes) -> list[CID]:
    """The CIDs of the blocks that `block` links to, for whoever keeps what is reachable (`store.base.LinksOf`).

    A link to an identity CID, whose block is in no store, is replaced by the links of that block. Raises DagError,
    also for a codec that we don't know: its links would be taken for garbage.
    """
    codec = codec_of(cid)
    if codec == RAW:
        return []
    if codec == DAG_PB:
        links = [link.cid for link in decode_node(cid, block).links]
    elif codec == DAG_CBOR:
        links = dagcbor.links_in(cid, block)
    else:
        raise DagError(f"the links of a block with codec {codec:#x} can't be read", cid)
    found: list[CID] = []
    for link in links:
        inline = inline_block(link)
        if inline is None:
            found.append(link)
        else:
            found += links_of(link, inline)  # ends: the inner block is shorter, and the first is at most 128 bytes
    return found


def _file(cid: CID, node: PBNode, fs: UnixFS) -> FileNode:
    if len(node.links) != len(fs.blocksizes):
        raise DagError(f"a file node with {len(node.links)} links and {len(fs.blocksizes)} sizes", cid)
    size = len(fs.data) + sum(fs.blocksizes)
    if (fs.filesize is not None and fs.filesize != size) or size > MAX_SIZE:
        raise DagError(f"a file node of {fs.filesize} bytes whose parts have {size}", cid)
    children = tuple((link.cid, part) for link, part in zip(node.links, fs.blocksizes, strict=True))
    return FileNode(fs.data, children, size)


def _directory(cid: CID, node: PBNode) -> DirectoryNode:
    entries = tuple(DirEntry(link.name, link.cid, link.tsize) for link in node.links)
    seen: set[bytes] = set()
    for entry in entries:
        if not is_entry_name(entry.name):
            raise DagError(f"a directory with the entry name {entry.name!r}", cid)
        if entry.name in seen:
            raise DagError(f"a directory with the entry {entry.name!r} twice", cid)
        seen.add(entry.name)
    return DirectoryNode(entries)


def _target(cid: CID, node: PBNode, fs: UnixFS) -> bytes:
    if node.links or not 0 < len(fs.data) <= MAX_TARGET or b"\0" in fs.data:
        raise DagError("a symbolic link with children, or with a target that no link can have", cid)
    return fs.data
