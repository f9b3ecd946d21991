"""Directories of a stored tree: what is in them, by name and by path.

A tree is named by a CID of either of two things: a snapshot, whose `tree` holds names and contents and
whose `meta` holds everything that UnixFS has no place for, or any UnixFS node, ours or anybody's. A `Node`
hides the difference: of a plain tree it has no attributes, and its kind may have to be looked up.

Fifos, sockets and devices are in `meta` only. Such a node has no CID. The same holds for a file that could
not be read when the snapshot was taken.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from fused.cid import DAG_CBOR, RAW, codec_of, inline_block
from fused.dag import meta as dag_meta
from fused.dag import walk as dag_walk
from fused.errors import DagError, PathNotInDag

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from fused.cid import CID
    from fused.dag.meta import Attrs, MetaEntry, Snapshot

Names = tuple[bytes, ...]
"""A path inside a tree, component by component. The root is ()."""

NodeKind = Literal["dir", "file", "link", "fifo", "sock", "chr", "blk"]

_LOOKED_UP_AT_ONCE = 16
"""Nodes fetched in one go to learn their kinds: at 2 MiB for the largest allowed block, 32 MiB at worst."""

MAX_DEPTH = 4096
"""Directories below each other that are walked: twice as many as a path that the kernel takes can have (PATH_MAX). A
few blocks can stand for any depth, and each level costs its whole path."""

_MAX_LINKS = 40
"""Symlinks followed for one path, as many as the kernel follows (path_resolution(7))."""


class Blocks(Protocol):
    """Where blocks come from, verified and in the clear: a BlockStore, or a wrapper that decrypts."""

    async def get(self, cid: CID) -> bytes:
        """One block. Raises StoreError."""
        ...

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        """All of `cids`. Raises StoreError."""
        ...


@dataclass(frozen=True, slots=True)
class Node:
    """One place in a tree. `kind` and `size` are None until `looked_up` where only the block can tell."""

    cid: CID | None
    kind: NodeKind | None
    size: int | None = None
    """Bytes of a file's content; of a symlink, of its text; 0 for anything else."""
    attrs: Attrs | None = None
    meta: CID | None = None
    """The node with the attributes of a directory's entries, in a snapshot."""


@dataclass(frozen=True, slots=True)
class Root:
    """What a CID on a command line led to. `snapshot` is None for a plain tree."""

    cid: CID
    node: Node
    snapshot: Snapshot | None


async def open_root(blocks: Blocks, cid: CID) -> Root:
    """The tree that `cid` names. Raises StoreError, and DagError if it is neither a snapshot nor UnixFS."""
    if codec_of(cid) != DAG_CBOR:
        return Root(cid, await looked_up(blocks, Node(cid, None)), None)
    snapshot = dag_meta.decode_snapshot(cid, await blocks.get(cid))
    attrs, _ = await dag_meta.read_meta_dir(blocks.get, snapshot.meta)
    return Root(cid, Node(snapshot.tree, "dir", 0, attrs, snapshot.meta), snapshot)


async def looked_up(blocks: Blocks, node: Node) -> Node:
    """The same node with its kind and size, fetching its block if they are not known yet."""
    if node.cid is None or (node.kind is not None and node.size is not None):
        return node
    kind, size = await dag_walk.stat_node(blocks.get, node.cid)
    return replace(node, kind=kind, size=size)


async def children(blocks: Blocks, node: Node) -> list[tuple[bytes, Node]]:
    """The entries of a directory, sorted by the bytes of their names, fetching no entry's own block.

    Of a plain tree, `kind` and `size` of what is not a raw leaf stay None. Raises StoreError, DagError.
    """
    found: dict[bytes, Node] = {}
    if node.cid is not None:
        async for name, cid, tsize in dag_walk.list_directory(blocks.get, node.cid):
            # The cumulative size of a raw leaf is its length. It is the parent's claim, good enough to be shown.
            found[name] = Node(cid, "file", tsize) if codec_of(cid) == RAW else Node(cid, None)
    if node.meta is not None:
        _, entries = await dag_meta.read_meta_dir(blocks.get, node.meta)
        for entry in entries:
            found[entry.name] = _with_attributes(found.get(entry.name), entry)
    return sorted(found.items())


async def children_looked_up(blocks: Blocks, node: Node) -> list[tuple[bytes, Node]]:
    """The same with every kind known, at the cost of fetching the roots of a plain tree's entries."""
    entries = await children(blocks, node)
    # By CID: a small directory may link to one large block from all its entries.
    unknown = list({child.cid: None for _, child in entries if child.kind is None and child.cid is not None})
    known: dict[CID, dag_walk.NodeStat] = {}
    for start in range(0, len(unknown), _LOOKED_UP_AT_ONCE):
        batch = unknown[start : start + _LOOKED_UP_AT_ONCE]
        fetched = await blocks.get_many([cid for cid in batch if inline_block(cid) is None])

        async def get(cid: CID, fetched: Mapping[CID, bytes] = fetched) -> bytes:
            return fetched[cid]

        for cid in batch:
            known[cid] = await dag_walk.stat_node(get, cid)
    for at, (name, child) in enumerate(entries):
        if child.kind is None and child.cid is not None:
            kind, size = known[child.cid]
            entries[at] = (name, replace(child, kind=kind, size=size))
    return entries


async def find(blocks: Blocks, node: Node, path: Names) -> Node:
    """The node that `path` leads to from `node`, looked up. Symlinks are not followed. Raises PathNotInDag."""
    for depth, name in enumerate(path):
        node = await looked_up(blocks, node)
        if node.kind != "dir":
            raise PathNotInDag(f"{shown(path[:depth])} is not a directory")
        below: Node | None = None
        if node.cid is not None:
            with suppress(PathNotInDag):
                below = Node((await dag_walk.lookup(blocks.get, node.cid, name)).cid, None)
        if node.meta is not None:
            _, entries = await dag_meta.read_meta_dir(blocks.get, node.meta)
            at = bisect_left(entries, name, key=lambda entry: entry.name)
            if at < len(entries) and entries[at].name == name:
                below = _with_attributes(below, entries[at])
        if below is None:
            raise PathNotInDag(f"{shown(path[: depth + 1])} is not in the tree")
        node = below
    return await looked_up(blocks, node)


async def follow(blocks: Blocks, root: Node, path: Names) -> Node:
    """The node that `path` leads to with symlinks followed, as long as they stay inside the tree.

    Raises PathNotInDag, also for a link that leads nowhere, out of the tree, or round and round.
    """
    todo, links = list(reversed(path)), 0
    done: list[bytes] = []
    way = [root]
    while todo:
        name = todo.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if not done:
                raise PathNotInDag(f"{shown(path)} is a symbolic link that leads out of the tree")
            done.pop()
            way.pop()
            continue
        try:
            node = await find(blocks, way[-1], (name,))
        except PathNotInDag:
            raise PathNotInDag(f"{shown((*done, name))} is not in the tree") from None
        if node.kind != "link" or node.cid is None:
            done.append(name)
            way.append(node)
            continue
        links += 1
        text = await dag_walk.read_link(blocks.get, node.cid)
        if links > _MAX_LINKS:
            raise PathNotInDag(f"{shown(path)} leads through too many symbolic links")
        if text.startswith(b"/"):
            raise PathNotInDag(f"{shown((*done, name))} is a symbolic link to {shown((text,))}, outside the tree")
        todo += reversed(text.split(b"/"))
    return await looked_up(blocks, way[-1])


async def walk(blocks: Blocks, node: Node, path: Names = ()) -> AsyncGenerator[tuple[Names, Node]]:
    """Everything below the directory `node`, each directory right before its contents, names in order of their bytes.

    In memory are the entries of the directories on the way down, no more. Raises DagError below MAX_DEPTH.
    """
    stack = [(path, iter(await children_looked_up(blocks, node)))]
    while stack:
        base, entries = stack[-1]
        for name, child in entries:
            below = (*base, name)
            yield below, child
            if child.kind == "dir":
                check_depth(below, child)
                stack.append((below, iter(await children_looked_up(blocks, child))))
                break
        else:
            stack.pop()


def check_depth(path: Names, node: Node) -> None:
    """Raise DagError if the directory `node` lies deeper than anybody can use."""
    if len(path) > MAX_DEPTH:
        raise DagError(f"more than {MAX_DEPTH:,} directories below each other", node.cid or node.meta)


def names_of(path: bytes) -> Names:
    """The components of a path as a person writes it; leading, trailing and double slashes don't matter.

    Raises PathNotInDag for `.` and `..`, which no tree has.
    """
    names = tuple(name for name in path.split(b"/") if name)
    for name in names:
        if name in (b".", b".."):
            raise PathNotInDag(f"{os.fsdecode(path)!r} has a component {os.fsdecode(name)}, which no stored tree has")
    return names


def shown(path: Names) -> str:
    """A path for a person's eyes: one line, whatever bytes are in it."""
    text = b"/".join(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) or "."


def _with_attributes(node: Node | None, entry: MetaEntry) -> Node:
    attrs = entry.attrs
    size = attrs.size if attrs.kind in ("file", "link") else 0
    return Node(node.cid if node else None, attrs.kind, size, attrs, entry.child)
