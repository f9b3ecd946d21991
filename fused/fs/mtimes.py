"""Keeps the local files' modification times equal to those that the kernel shows.

With the write-back cache the kernel sets mtime when a program writes, and sends it to us later by setattr. Our own
writes to the local file set it as well, some milliseconds later. Nearly always the kernel's setattr comes last and
wins. Not so when it finds nothing to send (a file written within the clock tick of its creation, as most small files
are: Linux inode_needs_update_time) or when a background write overtakes its setattr. Without this module such a file
would change its mtime by itself when the kernel drops it from its cache, and `rsync` and `git` would notice.

The invariant: while no program has a file open for writing, its local mtime is what the kernel believes it to be. So
what the kernel believes is the mtime at the first open for writing, or that of the last setattr.

Not for write-through mounts: there the kernel believes us.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fused.local import layer

if TYPE_CHECKING:
    from fused.fs.inodes import Inode


class _Believed:
    """What the kernel takes for the mtime of a file that is open for writing."""

    __slots__ = ("mtime_ns", "ours_is_later", "writers")

    def __init__(self, mtime_ns: int) -> None:
        self.mtime_ns = mtime_ns
        self.writers = 0
        self.ours_is_later = False


class ModificationTimes:
    """Files that are open for writing, by inode."""

    def __init__(self) -> None:
        self._believed: dict[int, _Believed] = {}

    def opened(self, inode: Inode, st: os.stat_result) -> None:
        """A program opened the file for writing; `st` is from before any change by this open."""
        believed = self._believed.get(inode.ino)
        if believed is None:
            believed = self._believed[inode.ino] = _Believed(st.st_mtime_ns)
        believed.writers += 1

    def written(self, inode: Inode) -> None:
        """Our own write or truncation just set the local mtime."""
        believed = self._believed.get(inode.ino)
        if believed is not None:
            believed.ours_is_later = True

    def told(self, inode: Inode, mtime_ns: int) -> None:
        """The kernel sent an mtime, and the local file has it."""
        believed = self._believed.get(inode.ino)
        if believed is not None:
            believed.mtime_ns = mtime_ns
            believed.ours_is_later = False

    def closed(self, inode: Inode, fd: int) -> tuple[os.stat_result, os.stat_result] | None:
        """A program's open for writing ends; the kernel has written everything out and sent what it had to send.

        Gives the local file the kernel's mtime. Returns its stat before and after if that changed it.
        """
        believed = self._believed.get(inode.ino)
        if believed is None:
            return None
        believed.writers -= 1
        if believed.writers == 0:
            del self._believed[inode.ino]
        if not believed.ours_is_later:
            return None
        believed.ours_is_later = False
        before = os.fstat(fd)
        if before.st_mtime_ns == believed.mtime_ns:
            return None
        try:
            layer.set_times(fd, before.st_atime_ns, believed.mtime_ns)
        except PermissionError:  # a file that we may write to but don't own
            return None
        return before, os.fstat(fd)
