"""A plain reference for what a snapshot is: reads a directory and stores it, the straightforward way.

For tests of whatever reads snapshots. It shares the DAG encoding with the program and nothing else: no
index, no memo, no change tracking.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

from fused.cid import RAW, cid_of
from fused.dag.build import DirEntry, directory, file_root, symlink_node
from fused.dag.chunker import CHUNK
from fused.dag.meta import Attrs, MetaEntry, Snapshot, encode_meta_dir, encode_snapshot
from fused.store.base import Block

if TYPE_CHECKING:
    from fused.cid import CID
    from fused.store.base import BlockStore

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
}


async def snapshot_of(store: BlockStore, path: str | bytes, *, time_ns: int = 1_700_000_000_000_000_000) -> CID:
    """Store the directory `path` and return the CID of its snapshot."""
    tree, meta, _ = await _directory(store, os.fsencode(path))
    block = encode_snapshot(Snapshot(tree, meta, time_ns, socket.gethostname(), "test"))
    await store.put([block])
    return block.cid


async def tree_of(store: BlockStore, path: str | bytes) -> CID:
    """Store the directory `path` and return the CID of its plain UnixFS tree."""
    return (await _directory(store, os.fsencode(path)))[0]


async def file_of(store: BlockStore, content: bytes) -> tuple[CID, int]:
    """Store `content` as a file: its root and its cumulative size."""
    root, blocks, tsize = _file(content)
    await store.put(blocks)
    return root, tsize


def _file(content: bytes) -> tuple[CID, list[Block], int]:
    leaves: list[CID] = []
    blocks: list[Block] = []
    for at in range(0, max(len(content), 1), CHUNK):
        chunk = content[at : at + CHUNK]
        leaves.append(cid_of(RAW, chunk))
        blocks.append(Block(leaves[-1], chunk))
    root, nodes, tsize = file_root(leaves, len(content))
    return root, [*blocks, *nodes], tsize


def attrs_of(path: bytes) -> Attrs:
    """The attributes of what is at `path`, as a snapshot records them."""
    st = os.lstat(path)
    kind = _KINDS[stat.S_IFMT(st.st_mode)]
    names = sorted(os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False))
    return Attrs(
        kind=kind,
        mode=stat.S_IMODE(st.st_mode),
        uid=st.st_uid,
        gid=st.st_gid,
        mtime_ns=st.st_mtime_ns,
        size=st.st_size if kind in ("file", "link") else 0,
        rdev=st.st_rdev,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        hardlink=st.st_ino if st.st_nlink > 1 and kind != "dir" else None,
    )


async def _directory(store: BlockStore, path: bytes) -> tuple[CID, CID, int]:
    entries: list[DirEntry] = []
    metas: list[MetaEntry] = []
    blocks: list[Block] = []
    for name in sorted(os.listdir(path)):
        child = path + b"/" + name
        attrs = attrs_of(child)
        meta: CID | None = None
        made: list[Block] = []
        if attrs.kind == "dir":
            cid, meta, tsize = await _directory(store, child)
            entries.append(DirEntry(name, cid, tsize))
        elif attrs.kind == "file":
            cid, made, tsize = _file(_content(child))
            entries.append(DirEntry(name, cid, tsize))
        elif attrs.kind == "link":
            cid, block, tsize = symlink_node(os.readlink(child))
            made = [block]
            entries.append(DirEntry(name, cid, tsize))
        metas.append(MetaEntry(name, attrs, meta))
        blocks += made
        if sum(len(block.data) for block in made) > CHUNK or len(blocks) > 100:
            await store.put(blocks)
            blocks = []
    tree, nodes, tsize = directory(entries)
    root, pages = encode_meta_dir(attrs_of(path), metas)
    await store.put([*blocks, *nodes, *pages])
    return tree, root, tsize


def _content(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()
