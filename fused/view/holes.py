"""Where a stored file has no holes: what has to be fetched and written to bring it back.

A file of ours has CHUNK-sized raw leaves, so a hole is the same leaf again and again, and the nodes over it are the
same node again and again. Each of them is looked at twice at most, however often it comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused.cid import RAW, cid_of, codec_of
from fused.dag.chunker import CHUNK
from fused.dag.content import MAX_FILE_DEPTH
from fused.dag.node import FileNode, fetch_node
from fused.errors import DagError

if TYPE_CHECKING:
    from fused.cid import CID
    from fused.dag.node import Get

_ZEROS = cid_of(RAW, bytes(CHUNK))

AT_ONCE = 64 * CHUNK
"""Bytes after which a range ends though more data follow: so that its consumer has them before we look further.
A tree that others made may claim more bytes, in smaller parts, than anybody could look at beforehand."""


class DataRanges:
    """The bytes of the file at `root`, which says that it has `size`, but for those in holes: ranges in order.

    Iterating raises StoreError, and DagError for what is not a file. What else is wrong with the tree is found by
    whoever reads the ranges.
    """

    def __init__(self, get: Get, root: CID, size: int) -> None:
        self._get = get
        self._holes: dict[CID, int] = {_ZEROS: CHUNK}  # leaves and nodes without anything but zeros, and their sizes
        self._stack = [(root, range(size), 0)]

    def __aiter__(self) -> DataRanges:
        return self

    async def __anext__(self) -> range:
        found = range(0)
        while self._stack:
            cid, part, depth = self._stack.pop()
            if self._holes.get(cid) == len(part):
                if found:
                    return found
                continue
            if codec_of(cid) != RAW and depth <= MAX_FILE_DEPTH:
                node = await fetch_node(self._get, cid)
                if not isinstance(node, FileNode):
                    raise DagError("not a file", cid)
                if not node.data and node.children and node.size == len(part):
                    self._enter(cid, node, part, depth)
                    continue
            found = range(found.start, part.stop) if found else part
            if len(found) >= AT_ONCE:
                return found
        if found:
            return found
        raise StopAsyncIteration

    def _enter(self, cid: CID, node: FileNode, part: range, depth: int) -> None:
        if all(self._holes.get(child) == size for child, size in node.children):
            self._holes[cid] = node.size
        below = []
        at = part.start
        for child, size in node.children:
            if size:
                below.append((child, range(at, at + size), depth + 1))
            at += size
        self._stack += reversed(below)
