"""The covered directory as the kernel sees it: the parts of the `fs` layer put together, without FUSE.

Everything here works on trio's thread. `answers.py` translates between the kernel and the parts.
"""

from __future__ import annotations

import os
import resource
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from fused.fs.attrs import Attributes
from fused.fs.files import Files
from fused.fs.handles import Handles
from fused.fs.inodes import Inodes
from fused.fs.listings import Listings
from fused.fs.mtimes import ModificationTimes
from fused.fs.owner import NewOwner
from fused.fs.reach import MAX_CACHED, Reach
from fused.fs.requests import RequestCounter
from fused.fs.tree import Tree
from fused.fs.waiting import Waiting

if TYPE_CHECKING:
    from fused.fs.changes_protocol import ChangeSink
    from fused.fs.inodes import Inode
    from fused.fs.requests import RequestStats


RESERVED_FDS = 96
"""Descriptors that programs can't use up by opening files: status, sync, snapshots and umount must go on. A snapshot
needs one for each level of the tree, the store about 20, an unmount 6."""


class FileSystem:
    """One covered directory.

    `root_fd` was opened on it before the mount hid it; borrowed, it must stay open until after `close`.
    """

    def __init__(
        self, root_fd: int, changes: ChangeSink, *, private: bool, write_through: bool, read_only: bool
    ) -> None:
        self.root_fd = root_fd
        self.private = private
        self.write_through = write_through
        self.read_only = read_only
        self.inodes = Inodes(os.fstat(root_fd))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if limit == resource.RLIM_INFINITY:
            limit = sys.maxsize
        self.handles = Handles(limit - min(RESERVED_FDS, limit // 4))
        # A quarter at most of what may be open: the rest is for the programs' files.
        max_cached = min(MAX_CACHED, limit // 4)
        self.reach = Reach(root_fd, self.inodes, self.handles, max_cached=max_cached)
        self.waiting = Waiting()
        self.listings = Listings()
        self.tree = Tree(
            self.inodes, self.handles, self.reach, changes, self.waiting, NewOwner(private=private), self.listings
        )
        mtimes = None if write_through else ModificationTimes()
        self.files = Files(
            self.inodes, self.handles, self.reach, self.tree, changes, self.waiting, mtimes, private=private
        )
        self.attributes = Attributes(root_fd, self.inodes, self.reach, changes, self.waiting, mtimes, private=private)
        self.inodes.on_drop = self._dropped
        self.requests: defaultdict[str, RequestCounter] = defaultdict(RequestCounter)

    def _dropped(self, inode: Inode) -> None:
        self.reach.release(inode)
        if inode.is_directory:
            self.listings.forget(inode)

    def writers(self) -> list[bytes]:
        """Paths relative to the root of the files that are open for writing; one path each, removed ones left out."""
        paths = set()
        for handle in self.handles.files():
            if handle.writable:
                paths.update(self.inodes.paths(handle.inode)[:1])
        return sorted(paths)

    def counters(self) -> dict[str, RequestStats]:
        """Requests served by kind."""
        self.waiting.settle()
        return {kind: counter.stats() for kind, counter in sorted(self.requests.items()) if counter.count}

    def inode_count(self) -> int:
        """Inodes that the kernel holds, and directories that contain one of them."""
        return len(self.inodes)

    def handle_count(self) -> int:
        """Open files and directories."""
        return len(self.handles)

    def close(self) -> None:
        """Close all descriptors but `root_fd`. The kernel does not send forgets at unmount."""
        self.handles.close()
        self.reach.close()
