"""What is open: files and directories by handle, and open files by inode."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from fused.fs.listings import Listing
from fused.types import Fh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fused.fs.changes_protocol import Dirs
    from fused.fs.inodes import Inode
    from fused.fs.mtimes import ModificationTimes


class FileHandle:
    """An open file. Owns `fd`."""

    __slots__ = ("changed_in_thread", "dirs", "fd", "fh", "inode", "key", "mtimes", "writable")

    def __init__(self, fh: Fh, fd: int, inode: Inode, *, writable: bool, dirs: Dirs) -> None:
        self.fh = fh
        self.fd = fd
        self.inode = inode
        self.key = inode.key
        self.writable = writable
        """Opened for writing by the program, whatever the local descriptor can do."""
        self.dirs = dirs
        self.mtimes: ModificationTimes | None = None
        """Where the writes of this handle are to be noted; None if the kernel does not keep account of them."""
        self.changed_in_thread = False
        """Whether the disk was too busy to make any of its writes at once."""


class DirHandle:
    """An open directory. Owns `fd`, which can be listed. `listing` is what readdir walks through."""

    __slots__ = ("fd", "fh", "inode", "listing")

    def __init__(self, fh: Fh, fd: int, inode: Inode) -> None:
        self.fh = fh
        self.fd = fd
        self.inode = inode
        self.listing = Listing()


class Handles:
    """All open files and directories. Numbers are given once and never again."""

    def __init__(self, most_fds: int) -> None:
        """Descriptors from `most_fds` up are for the daemon's own work, see `check_room`."""
        self._most_fds = most_fds
        self._next = 1
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirHandle] = {}
        self._by_inode: dict[int, list[FileHandle]] = {}

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    def files(self) -> Iterator[FileHandle]:
        """All open files."""
        return iter(self._files.values())

    def add_file(self, fd: int, inode: Inode, *, writable: bool, dirs: Dirs) -> FileHandle:
        """Take over `fd` as an open file of `inode`."""
        handle = FileHandle(Fh(self._next), fd, inode, writable=writable, dirs=dirs)
        self._next += 1
        self._files[handle.fh] = handle
        self._by_inode.setdefault(inode.ino, []).append(handle)
        return handle

    def add_directory(self, fd: int, inode: Inode) -> DirHandle:
        """Take over `fd` as an open directory."""
        handle = DirHandle(Fh(self._next), fd, inode)
        self._next += 1
        self._directories[handle.fh] = handle
        return handle

    def check_room(self, fd: int) -> None:
        """Raise ENFILE if the next open file would take one of the last descriptors. `fd` is any that is open."""
        if len(self) > self._most_fds // 4:
            # The host gives the lowest number that is free: all below it are in use.
            probe = os.dup(fd)
            os.close(probe)
            if probe >= self._most_fds:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def file(self, fh: int) -> FileHandle:
        """An open file; EBADF if there is none."""
        handle = self._files.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def directory(self, fh: int) -> DirHandle:
        """An open directory; EBADF if there is none."""
        handle = self._directories.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def of(self, inode: Inode) -> list[FileHandle]:
        """The open files of an inode; not to be changed by the caller."""
        return self._by_inode.get(inode.ino, [])

    def is_open(self, inode: Inode) -> bool:
        """Whether a program has the file open."""
        return inode.ino in self._by_inode

    def release_file(self, fh: int) -> int:
        """Take out an open file; returns its descriptor, which the caller closes."""
        handle = self.file(fh)
        del self._files[handle.fh]
        same = self._by_inode[handle.inode.ino]
        same.remove(handle)
        if not same:
            del self._by_inode[handle.inode.ino]
        return handle.fd

    def release_directory(self, fh: int) -> None:
        """Close an open directory."""
        handle = self.directory(fh)
        del self._directories[handle.fh]
        os.close(handle.fd)

    def close(self) -> None:
        """Close everything, when the mount is gone."""
        for fh in list(self._files):
            os.close(self.release_file(fh))
        for fh in list(self._directories):
            self.release_directory(fh)
