"""A tree on disk to its UnixFS DAG with `fused.dag` alone: no mount, no index, no store."""

from __future__ import annotations

import os
import stat

from fused.cid import CID, RAW, cid_of
from fused.dag.build import DirEntry, directory, file_root, symlink_node
from fused.dag.chunker import CHUNK


def tree_node(path: bytes, blocks: dict[CID, bytes] | None = None) -> tuple[CID, int]:
    """The CID and cumulative size of the file, link or directory at `path`; its blocks go to `blocks` if given."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        cid, block, tsize = symlink_node(os.readlink(path))
        made = [block]
    elif stat.S_ISDIR(mode):
        names = os.listdir(path)
        cid, made, tsize = directory(DirEntry(name, *tree_node(path + b"/" + name, blocks)) for name in names)
    else:
        leaves, size = [], 0
        with open(path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                leaf = cid_of(RAW, chunk)
                leaves.append(leaf)
                size += len(chunk)
                if blocks is not None:
                    blocks[leaf] = chunk
        cid, made, tsize = file_root(leaves, size)
    if blocks is not None:
        blocks.update(made)
    return cid, tsize
