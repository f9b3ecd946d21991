"""A file's content: from a range of bytes to the blocks in which they lie, and their bytes.

Iterators here are classes, not async generators: one that is dropped halfway, because its user failed, would have to
be closed by that user, and Trio warns about each that is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fused.cid import CID, RAW, codec_of, inline_block
from fused.dag.node import FileNode, Node, fetch_node
from fused.dag.unixfs import MAX_SIZE
from fused.errors import DagError

if TYPE_CHECKING:
    from fused.dag.node import Get, GetMany

MAX_FILE_DEPTH = 64
"""Levels of nodes in a file: even a tree of two links a node and one byte a leaf needs no more for 2**63 bytes."""

BATCH = 16
"""Leaves asked for at once where `get_many` is given: 16 MiB in memory at our chunk size."""


class Leaf(NamedTuple):
    """A block of a file and the content bytes in it."""

    cid: CID
    size: int


class _Piece(NamedTuple):
    """A stretch of content, from `start` in the file. `data` is None for a raw leaf that was not fetched yet."""

    cid: CID
    start: int
    size: int
    data: bytes | None
    inner: bool


class _Part(NamedTuple):
    """A node still to be looked at: the content before it, the bytes its parent says are in it, itself if at hand."""

    cid: CID
    start: int
    size: int
    depth: int
    node: FileNode | None


class _Pieces:
    """The pieces of a file that hold any byte from `start` to before `end`, in order.

    A part that claims no bytes is never entered, so each block fetched stands for at least one byte of the range.
    """

    def __init__(self, get: Get, root: CID, start: int, end: int) -> None:
        self._get = get
        self._root: CID | None = root
        self._start, self._end = start, end
        self._stack: list[_Part] = []

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> _Piece:
        if self._root is not None:
            node = _as_file(await fetch_node(self._get, self._root), self._root)
            self._push([_Part(self._root, 0, node.size, 0, node)])
            self._root = None
        while self._stack:
            part = self._stack.pop()
            if part.node is None and codec_of(part.cid) == RAW and inline_block(part.cid) is None:
                return _Piece(part.cid, part.start, part.size, None, False)
            node = part.node or _as_file(await fetch_node(self._get, part.cid), part.cid)
            if node.size != part.size:
                raise DagError(f"a part of a file with {node.size} bytes where {part.size} should be", part.cid)
            if part.depth > MAX_FILE_DEPTH:
                raise DagError(f"a file of more than {MAX_FILE_DEPTH} levels of nodes", part.cid)
            at = part.start + len(node.data)
            below = []
            for child, size in node.children:
                below.append(_Part(child, at, size, part.depth + 1, None))
                at += size
            self._push(below)
            if self._wanted(part.start, len(node.data)):
                return _Piece(part.cid, part.start, len(node.data), node.data, bool(node.children))
        raise StopAsyncIteration

    def _push(self, parts: list[_Part]) -> None:
        self._stack += [part for part in reversed(parts) if self._wanted(part.start, part.size)]

    def _wanted(self, start: int, size: int) -> bool:
        return max(start, self._start) < min(start + size, self._end)


class Contents:
    """The bytes of a range, cut as the leaves are, each of which is checked against the size that its parent says."""

    def __init__(self, get: Get, root: CID, start: int, end: int, get_many: GetMany | None) -> None:
        self._get, self._get_many = get, get_many
        self._pieces = _Pieces(get, root, start, end)
        self._start, self._end = start, end
        self._ready: list[bytes] = []  # reversed

    def __aiter__(self) -> Contents:
        return self

    async def __anext__(self) -> bytes:
        if not self._ready:
            await self._load()
        return self._ready.pop()

    async def _load(self) -> None:
        batch: list[_Piece] = []
        async for piece in self._pieces:
            batch.append(piece)
            if self._get_many is None or len(batch) == BATCH:
                break
        if not batch:
            raise StopAsyncIteration
        missing = list({piece.cid for piece in batch if piece.data is None})
        if self._get_many is not None and len(missing) > 1:
            blocks = await self._get_many(missing)
        else:
            blocks = {cid: await self._get(cid) for cid in missing}
        for piece in reversed(batch):
            data = blocks[piece.cid] if piece.data is None else piece.data
            if len(data) != piece.size:
                raise DagError(f"a leaf of {len(data)} bytes where {piece.size} should be", piece.cid)
            low, high = max(0, self._start - piece.start), min(piece.size, self._end - piece.start)
            self._ready.append(data if high - low == piece.size else data[low:high])


class Leaves:
    """The leaves of a file in order, raw ones not fetched. An empty file is its root alone."""

    def __init__(self, get: Get, root: CID) -> None:
        self._pieces = _Pieces(get, root, 0, MAX_SIZE)
        self._empty: CID | None = root  # while no leaf has come

    def __aiter__(self) -> Leaves:
        return self

    async def __anext__(self) -> Leaf:
        async for piece in self._pieces:
            if piece.inner:
                raise DagError("a file with content in an inner node, which has no list of leaves", piece.cid)
            self._empty = None
            return Leaf(piece.cid, piece.size)
        if self._empty is None:
            raise StopAsyncIteration
        root, self._empty = self._empty, None
        return Leaf(root, 0)


def _as_file(node: Node, cid: CID) -> FileNode:
    if not isinstance(node, FileNode):
        raise DagError("not a file", cid)
    return node
