"""Reading trees: from a root to names, bytes and leaves, through a `get` that the caller provides.

Trees come from anybody, so: whatever is malformed raises DagError naming the block, depth is bounded, and the
blocks fetched are in proportion to what comes out, so that a few hostile blocks linked crosswise can't keep us busy.
`get` returns verified, unsealed bytes. Nothing is cached here; a caller who reads ranges again and again
gives a `get` that does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from fused.cid import CID, RAW, codec_of, inline_block
from fused.dag.build import DirEntry, is_entry_name
from fused.dag.hamt import Shard, hash_name
from fused.dag.node import DirectoryNode, FileNode, Node, SymlinkNode, decode
from fused.dag.node import links_of as links_of
from fused.errors import DagError, PathNotInDag

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    Get = Callable[[CID], Awaitable[bytes]]
    GetMany = Callable[[Sequence[CID]], Awaitable[Mapping[CID, bytes]]]

MAX_FILE_DEPTH = 64
"""Levels of nodes in a file: even a tree of two links a node and one byte a leaf needs no more for 2**63 bytes."""

BATCH = 16
"""Leaves asked for at once where `get_many` is given: 16 MiB in memory at our chunk size."""


class NodeStat(NamedTuple):
    """`size` is a file's content bytes, a link's target bytes, 0 for a directory."""

    kind: Literal["file", "dir", "link"]
    size: int


class Leaf(NamedTuple):
    """A block of a file and the content bytes in it."""

    cid: CID
    size: int


async def fetch(get: Get, cid: CID) -> bytes:
    """The block at `cid`: from the CID itself if it is an identity CID (Kubo's `--inline`), else from `get`."""
    inline = inline_block(cid)
    return await get(cid) if inline is None else inline


async def stat_node(get: Get, root: CID) -> NodeStat:
    """What the node at `root` is."""
    match await _node(get, root):
        case FileNode(size=size):
            return NodeStat("file", size)
        case SymlinkNode(target=target):
            return NodeStat("link", len(target))
        case _:
            return NodeStat("dir", 0)


async def read_link(get: Get, root: CID) -> bytes:
    """The target of a symbolic link. Raises DagError if `root` is something else."""
    node = await _node(get, root)
    if not isinstance(node, SymlinkNode):
        raise DagError("not a symbolic link", root)
    return node.target


async def list_directory(get: Get, root: CID) -> AsyncIterator[DirEntry]:
    """Every entry of a directory, plain or sharded, as the blocks come: in no useful order, each name once.

    Raises DagError if `root` is no directory, or a broken one; entries before the broken part have come by then.
    """
    node = await _node(get, root)
    if isinstance(node, DirectoryNode):
        for entry in node.entries:
            yield entry
        return
    shard = _as_shard(node, root)
    # The path of a shard is the hash bits that lead to it. Each name's hash is compared with its whole path, so a shard
    # linked from two places fails at its first name, and no name can come twice.
    stack: list[tuple[Shard, int, int, Iterator[int]]] = [(shard, 0, 0, iter(shard.links))]
    while stack:
        shard, depth, path, slots = stack[-1]
        for slot in slots:
            link, below = shard.links[slot], path << shard.bits | slot
            if name := shard.name_in(link):
                if not is_entry_name(name) or hash_name(name) >> 64 - shard.bits * (depth + 1) != below:
                    raise DagError(f"a sharded directory with {name!r} where it can't be", shard.cid)
                yield DirEntry(name, link.cid, link.tsize)
            else:
                child = await _subshard(get, shard, link.cid, depth + 1)
                stack.append((child, depth + 1, below, iter(child.links)))
                break
        else:
            stack.pop()


async def lookup(get: Get, root: CID, name: bytes) -> DirEntry:
    """One entry of a directory, fetching only the shards on its way. Raises PathNotInDag if there is none."""
    node = await _node(get, root)
    if isinstance(node, DirectoryNode):
        for entry in node.entries:
            if entry.name == name:
                return entry
        raise PathNotInDag(f"{name!r} is not in the directory")
    shard = _as_shard(node, root)
    name_hash, depth = hash_name(name), 0
    while True:
        slot = shard.slot_of(name_hash, depth)
        link = None if slot is None else shard.links.get(slot)
        if link is None or not is_entry_name(name):
            raise PathNotInDag(f"{name!r} is not in the directory")
        found = shard.name_in(link)
        if found == name:
            return DirEntry(name, link.cid, link.tsize)
        if found:
            raise PathNotInDag(f"{name!r} is not in the directory")
        depth += 1
        shard = await _subshard(get, shard, link.cid, depth)


async def resolve(get: Get, root: CID, path: bytes) -> CID:
    """The node that `path` leads to from the directory `root`; slashes around it don't matter, links are not followed.

    Raises PathNotInDag, also where a component before the last is not a directory.
    """
    cid = root
    walked: list[bytes] = []
    for name in path.split(b"/"):
        if not name:
            continue
        kind, _ = await stat_node(get, cid)
        walked.append(name)
        shown = b"/".join(walked).decode(errors="backslashreplace")
        if kind != "dir":
            raise PathNotInDag(f"{shown} does not exist: what comes before the last slash is a {kind}")
        try:
            cid = (await lookup(get, cid, name)).cid
        except PathNotInDag:
            raise PathNotInDag(f"{shown} does not exist") from None
    return cid


async def read_range(get: Get, root: CID, offset: int, length: int, *, get_many: GetMany | None = None) -> bytes:
    """`length` content bytes of the file at `root` from `offset`, fewer at its end.

    Fetches only the blocks in which they lie and those above, the leaves in batches if `get_many` is given.
    """
    parts = [part async for part in _contents(get, root, offset, offset + length, get_many)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_file(get: Get, root: CID, *, get_many: GetMany | None = None) -> AsyncIterator[bytes]:
    """The file's whole content, leaf by leaf."""
    async for part in _contents(get, root, 0, None, get_many):
        yield part


async def leaves(get: Get, root: CID) -> AsyncIterator[Leaf]:
    """The blocks that hold the file's content, in order; raw ones are not fetched. An empty file is its root alone.

    Raises DagError for a file that keeps bytes in inner nodes too, as the oldest tools wrote: it has no list of leaves.
    """
    empty = True
    async for piece in _pieces(get, root, 0, None):
        if piece.inner:
            raise DagError("a file with content in an inner node, which has no list of leaves", piece.cid)
        empty = False
        yield Leaf(piece.cid, piece.size)
    if empty:
        yield Leaf(root, 0)


class _Piece(NamedTuple):
    """A stretch of content, from `start` in the file. `data` is None for a raw leaf that was not fetched yet."""

    cid: CID
    start: int
    size: int
    data: bytes | None
    inner: bool


async def _pieces(get: Get, root: CID, start: int, end: int | None) -> AsyncIterator[_Piece]:
    """The pieces that hold any byte from `start` to before `end` (None: to the file's end), in order.

    A part that claims no bytes is never entered, so each block fetched stands for at least one byte of the range.
    """
    node = _as_file(await _node(get, root), root)
    end = node.size if end is None else min(end, node.size)
    # (cid, content before it, bytes the parent says are in it, depth, its node if it is at hand)
    stack: list[tuple[CID, int, int, int, FileNode | None]] = [(root, 0, node.size, 0, node)]
    while stack:
        cid, at, size, depth, known = stack.pop()
        if at >= end or at + size <= start:
            continue
        if known is None:
            if codec_of(cid) == RAW and inline_block(cid) is None:
                yield _Piece(cid, at, size, None, False)
                continue
            known = _as_file(await _node(get, cid), cid)
            if known.size != size:
                raise DagError(f"a part of a file with {known.size} bytes where {size} should be", cid)
        if depth > MAX_FILE_DEPTH:
            raise DagError(f"a file of more than {MAX_FILE_DEPTH} levels of nodes", cid)
        if known.data and at < end and at + len(known.data) > start:
            yield _Piece(cid, at, len(known.data), known.data, bool(known.children))
        at += len(known.data)
        below = []
        for child, part in known.children:
            if part and at < end and at + part > start:
                below.append((child, at, part, depth + 1, None))
            at += part
        stack += reversed(below)


async def _contents(get: Get, root: CID, start: int, end: int | None, get_many: GetMany | None) -> AsyncIterator[bytes]:
    batch: list[_Piece] = []
    async for piece in _pieces(get, root, start, end):
        batch.append(piece)
        if get_many is None or len(batch) == BATCH:
            for part in await _load(get, get_many, batch):
                yield _clip(part, start, end)
            batch = []
    for part in await _load(get, get_many, batch):
        yield _clip(part, start, end)


async def _load(get: Get, get_many: GetMany | None, pieces: list[_Piece]) -> list[_Piece]:
    """The same pieces, all with data; checked against the size that the parent says."""
    missing = list({piece.cid for piece in pieces if piece.data is None})
    if get_many is not None and len(missing) > 1:
        blocks = await get_many(missing)
    else:
        blocks = {cid: await get(cid) for cid in missing}
    loaded = []
    for piece in pieces:
        data = blocks[piece.cid] if piece.data is None else piece.data
        if len(data) != piece.size:
            raise DagError(f"a leaf of {len(data)} bytes where {piece.size} should be", piece.cid)
        loaded.append(piece._replace(data=data))
    return loaded


def _clip(piece: _Piece, start: int, end: int | None) -> bytes:
    data = piece.data or b""
    low = max(0, start - piece.start)
    high = piece.size if end is None else min(piece.size, end - piece.start)
    return data if low == 0 and high == piece.size else data[low:high]


async def _node(get: Get, cid: CID) -> Node:
    return decode(cid, await fetch(get, cid))


def _as_file(node: Node, cid: CID) -> FileNode:
    if not isinstance(node, FileNode):
        raise DagError("not a file", cid)
    return node


def _as_shard(node: Node, cid: CID) -> Shard:
    if not isinstance(node, Shard):
        raise DagError("not a directory", cid)
    return node


async def _subshard(get: Get, parent: Shard, cid: CID, depth: int) -> Shard:
    """The shard below `parent`. It must not be empty: linked from every slot of every level, we'd visit it for ever."""
    if parent.bits * (depth + 1) > 64:
        raise DagError("a sharded directory deeper than its hash has bits", parent.cid)
    shard = await _node(get, cid)
    if not isinstance(shard, Shard) or shard.bits != parent.bits or not shard.links:
        raise DagError("not a shard that fits the one above it", cid)
    return shard
