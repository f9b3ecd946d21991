"""Reading trees: from a root to names, bytes and leaves, through a `get` that the caller provides.

Trees come from anybody, so: whatever is malformed raises DagError naming the block, depth is bounded, and the
blocks fetched are in proportion to what comes out, so that a few hostile blocks linked crosswise can't keep us busy.
`get` returns verified, unsealed bytes. Nothing is cached here; a caller who reads ranges again and again
gives a `get` that does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from fused.dag.build import DirEntry, is_entry_name
from fused.dag.content import Contents, Leaves
from fused.dag.content import Leaf as Leaf
from fused.dag.hamt import Shard, hash_name
from fused.dag.node import DirectoryNode, FileNode, Node, SymlinkNode, fetch_node
from fused.dag.node import links_of as links_of
from fused.dag.unixfs import MAX_SIZE
from fused.errors import DagError, PathNotInDag

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fused.cid import CID
    from fused.dag.node import Get, GetMany


class NodeStat(NamedTuple):
    """`size` is a file's content bytes, a link's target bytes, 0 for a directory."""

    kind: Literal["file", "dir", "link"]
    size: int


async def stat_node(get: Get, root: CID) -> NodeStat:
    """What the node at `root` is."""
    match await fetch_node(get, root):
        case FileNode(size=size):
            return NodeStat("file", size)
        case SymlinkNode(target=target):
            return NodeStat("link", len(target))
        case _:
            return NodeStat("dir", 0)


async def read_link(get: Get, root: CID) -> bytes:
    """The target of a symbolic link. Raises DagError if `root` is something else."""
    node = await fetch_node(get, root)
    if not isinstance(node, SymlinkNode):
        raise DagError("not a symbolic link", root)
    return node.target


def list_directory(get: Get, root: CID) -> AsyncIterator[DirEntry]:
    """Every entry of a directory, plain or sharded, as the blocks come: in no useful order, each name once.

    Raises DagError if `root` is no directory, or a broken one; entries before the broken part have come by then.
    """
    return _Listing(get, root)


async def lookup(get: Get, root: CID, name: bytes) -> DirEntry:
    """One entry of a directory, fetching only the shards on its way. Raises PathNotInDag if there is none."""
    node = await fetch_node(get, root)
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
    parts = [part async for part in Contents(get, root, offset, offset + length, get_many)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_file(get: Get, root: CID, *, get_many: GetMany | None = None) -> AsyncIterator[bytes]:
    """The file's whole content, leaf by leaf."""
    return Contents(get, root, 0, MAX_SIZE, get_many)


def leaves(get: Get, root: CID) -> AsyncIterator[Leaf]:
    """The blocks that hold the file's content, in order; raw ones are not fetched. An empty file is its root alone.

    Raises DagError for a file that keeps bytes in inner nodes too, as the oldest tools wrote: it has no list of leaves.
    """
    return Leaves(get, root)


class _Listing:
    """What `list_directory` returns: a class, not an async generator, for the reason that `content.py` gives."""

    def __init__(self, get: Get, root: CID) -> None:
        self._get = get
        self._root: CID | None = root
        self._entries: Iterator[DirEntry] = iter(())
        # The path of a shard is the hash bits that lead to it. Each name's hash is compared with its whole path, so a
        # shard linked from two places fails at its first name, and no name can come twice.
        self._stack: list[tuple[Shard, int, int, Iterator[int]]] = []  # with its depth, path, slots still to come

    def __aiter__(self) -> _Listing:
        return self

    async def __anext__(self) -> DirEntry:
        if self._root is not None:
            await self._start(self._root)
        for entry in self._entries:
            return entry
        while self._stack:
            shard, depth, path, slots = self._stack[-1]
            slot = next(slots, None)
            if slot is None:
                self._stack.pop()
                continue
            link, below = shard.links[slot], path << shard.bits | slot
            if name := shard.name_in(link):
                if not is_entry_name(name) or hash_name(name) >> 64 - shard.bits * (depth + 1) != below:
                    raise DagError(f"a sharded directory with {name!r} where it can't be", shard.cid)
                return DirEntry(name, link.cid, link.tsize)
            child = await _subshard(self._get, shard, link.cid, depth + 1)
            self._stack.append((child, depth + 1, below, iter(child.links)))
        raise StopAsyncIteration

    async def _start(self, root: CID) -> None:
        node = await fetch_node(self._get, root)
        self._root = None
        if isinstance(node, DirectoryNode):
            self._entries = iter(node.entries)
        else:
            shard = _as_shard(node, root)
            self._stack.append((shard, 0, 0, iter(shard.links)))


def _as_shard(node: Node, cid: CID) -> Shard:
    if not isinstance(node, Shard):
        raise DagError("not a directory", cid)
    return node


async def _subshard(get: Get, parent: Shard, cid: CID, depth: int) -> Shard:
    """The shard below `parent`. It must not be empty: linked from every slot of every level, we'd visit it for ever."""
    if parent.bits * (depth + 1) > 64:
        raise DagError("a sharded directory deeper than its hash has bits", parent.cid)
    shard = await fetch_node(get, cid)
    if not isinstance(shard, Shard) or shard.bits != parent.bits or not shard.links:
        raise DagError("not a shard that fits the one above it", cid)
    return shard
