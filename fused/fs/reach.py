"""From an inode to its local file: by descriptors, one name at a time, never by an absolute path.

An inode is reached, in this order, through an open handle, through the descriptor of its directory and its name
(checked: it must still be the same host inode), or through its *orphan descriptor*. That is an O_PATH descriptor which
is opened just before the last known name goes, and kept until the kernel forgets the inode. Through it `fstat`,
`ftruncate` and the like work on unlinked files, and the host can't give the inode number to another file meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from fused.local import layer
from fused.local.closing import close_soon

if TYPE_CHECKING:
    from fused.fs.handles import Handles
    from fused.fs.inodes import Inode, Inodes

MIN_CACHED = 128
MAX_CACHED = 1024
"""Directory descriptors kept open. A miss costs one `openat` for each level that is not cached either."""

_CACHED_OF_ONE_WALK = MIN_CACHED // 2
"""Of a chain of directories opened in one go, so many at the end stay cached. Less than MIN_CACHED, so that a walk
never pushes out the descriptor that an earlier call in the same operation returned (rename uses two)."""


def stale() -> OSError:
    """The inode has no file any more, or the file is not ours."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Aim:
    """Something to do metadata calls on, for the time of a `with` block. A class: cheaper than a generator.

    `fd` is open on the file, perhaps with O_PATH; that is good for fstat. `target` is good for everything else.
    """

    __slots__ = ("_owned", "fd", "target")

    def __init__(self, fd: int, target: layer.Target, *, owned: bool = False) -> None:
        self.fd = fd
        self.target = target
        self._owned = owned

    def __enter__(self) -> Aim:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            os.close(self.fd)


class Reach:
    """Descriptors of directories and of removed files. Borrows `root_fd`, owns all others."""

    def __init__(self, root_fd: int, inodes: Inodes, handles: Handles, *, max_cached: int = MAX_CACHED) -> None:
        self._root_fd = root_fd
        self._inodes = inodes
        self._handles = handles
        self._max_cached = max(MIN_CACHED, max_cached)
        self._dir_fds: OrderedDict[int, int] = OrderedDict()  # by Ino, least recently used first
        self._orphans: dict[int, int] = {}  # by Ino
        inodes.on_drop = self.release

    # Directories

    def dir_fd(self, directory: Inode) -> int:
        """A descriptor for `*at` calls in a directory. Borrowed: good until the next `await`, at most."""
        fd = self._cached(directory)
        return fd if fd is not None else self._walk(directory)

    def _cached(self, directory: Inode) -> int | None:
        if directory is self._inodes.root:
            return self._root_fd
        fd = self._dir_fds.get(directory.ino)
        if fd is not None:
            self._dir_fds.move_to_end(directory.ino)
            return fd
        return self._orphans.get(directory.ino)

    def _walk(self, directory: Inode) -> int:
        """Open a directory from its nearest ancestor that is open. A loop: trees may be deeper than Python's stack."""
        missing: list[tuple[Inode, bytes]] = []
        step = directory
        while (fd := self._cached(step)) is None:
            if step.parent is None or step.name is None:
                raise stale()
            missing.append((step, step.name))
            step = step.parent
        temporary: int | None = None
        for left in range(len(missing) - 1, -1, -1):
            inode, name = missing[left]
            try:
                opened = self._open_checked(fd, inode, name)
            finally:
                if temporary is not None:
                    os.close(temporary)
                    temporary = None
            if left < _CACHED_OF_ONE_WALK:
                self._dir_fds[inode.ino] = opened
            else:
                temporary = opened
            fd = opened
        while len(self._dir_fds) > self._max_cached:
            os.close(self._dir_fds.popitem(last=False)[1])
        return fd

    def _open_checked(self, parent_fd: int, inode: Inode, name: bytes) -> int:
        try:
            fd = layer.open_directory(parent_fd, name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise stale() from error
        if not inode.is_file_of(os.fstat(fd)):
            os.close(fd)
            raise stale()
        return fd

    def check_room(self) -> None:
        """Raise ENFILE if a program can't have one more file open."""
        self._handles.check_room(self._root_fd)

    def give_back(self) -> bool:
        """Close the cached descriptors of directories, when others need them more. Whether there were any."""
        fds = list(self._dir_fds.values())
        self._dir_fds.clear()
        for fd in fds:
            os.close(fd)
        return bool(fds)

    def cached_count(self) -> int:
        """How many directory descriptors are open."""
        return len(self._dir_fds)

    # Files of any type

    def stat(self, inode: Inode) -> os.stat_result:
        """The local file's stat; ESTALE if it can't be reached any more."""
        opened = self._handles.of(inode)
        if opened:
            return os.fstat(opened[0].fd)
        if inode.is_directory:
            fd = self._cached(inode)
            if fd is not None:
                return os.fstat(fd)
        if inode.parent is not None and inode.name is not None:
            st = self._stat_name(inode.parent, inode.name)
            if st is not None and inode.is_file_of(st):
                return st
        for parent, name in islice(inode.names(), 1, None):
            st = self._stat_name(parent, name)
            if st is not None and inode.is_file_of(st):
                return st
        orphan = self._orphans.get(inode.ino)
        if orphan is None:
            raise stale()
        return os.fstat(orphan)

    def _stat_name(self, parent: Inode, name: bytes) -> os.stat_result | None:
        try:
            return layer.stat_at(self.dir_fd(parent), name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise

    def aim(self, inode: Inode) -> Aim:
        """Reach the file to ask for its attributes or change them, in a `with` block without `await`."""
        opened = self._handles.of(inode)
        if opened:
            return Aim(opened[0].fd, opened[0].fd)
        if inode.is_directory and (cached := self._cached(inode)) is not None:
            return Aim(cached, layer.proc_path(cached))
        fd = self._open_path(inode)
        if fd is not None:
            return Aim(fd, layer.proc_path(fd), owned=True)
        orphan = self._orphans.get(inode.ino)
        if orphan is None:
            raise stale()
        return Aim(orphan, layer.proc_path(orphan))

    def _open_path(self, inode: Inode) -> int | None:
        for parent, name in inode.names():
            try:
                fd = layer.open_path(self.dir_fd(parent), name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if inode.is_file_of(os.fstat(fd)):
                return fd
            os.close(fd)
        return None

    def open(self, inode: Inode, flags: int) -> int:
        """Open a regular file or directory; the caller closes. ESTALE if it can't be reached any more."""
        if inode.is_directory:
            return layer.reopen(self.dir_fd(inode), flags | os.O_DIRECTORY)
        for parent, name in inode.names():
            try:
                fd = layer.open_at(self.dir_fd(parent), name, flags)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):  # now a symbolic link, a fifo or a socket
                    continue
                raise
            if inode.is_file_of(os.fstat(fd)):
                return fd
            os.close(fd)
        opened = self._handles.of(inode)
        source = self._orphans.get(inode.ino, opened[0].fd if opened else None)
        if source is None:
            raise stale()
        if not stat.S_ISREG(inode.kind):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return layer.reopen(source, flags)

    # Life of an inode

    def adopt_orphan(self, inode: Inode, path_fd: int) -> None:
        """The last known name is gone: keep `path_fd` (O_PATH, taken over) until the kernel forgets the inode."""
        self._close_directory(inode)
        if inode.ino in self._orphans:
            os.close(path_fd)
        else:
            self._orphans[inode.ino] = path_fd

    def release(self, inode: Inode) -> None:
        """Close what is kept for an inode that leaves the table."""
        self._close_directory(inode)
        fd = self._orphans.pop(inode.ino, None)
        if fd is not None:
            close_soon(fd)

    def _close_directory(self, inode: Inode) -> None:
        fd = self._dir_fds.pop(inode.ino, None)
        if fd is not None:
            os.close(fd)

    def orphan_count(self) -> int:
        """How many removed inodes the kernel still holds."""
        return len(self._orphans)

    def close(self) -> None:
        """Close everything, when the mount is gone."""
        for fd in (*self._dir_fds.values(), *self._orphans.values()):
            os.close(fd)
        self._dir_fds.clear()
        self._orphans.clear()
