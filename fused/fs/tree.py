"""Names: lookup, making, removing and moving them, and listing directories.

Every function is synchronous: the announcement to the change sink, the system call and the update of the inode table
are one step for everybody else in the process. Names are bytes, errors are the host's `OSError`.

Whatever adds to an inode's lookup count says so; the caller owes the kernel a reply with that inode.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fused.fs.listings import Listing
from fused.local import layer
from fused.local.closing import close_soon
from fused.local.listing import RawListing

if TYPE_CHECKING:
    from fused.fs.changes_protocol import ChangeSink, Dirs
    from fused.fs.handles import Handles
    from fused.fs.inodes import Inode, Inodes
    from fused.fs.listings import Listings
    from fused.fs.owner import NewOwner
    from fused.fs.reach import Reach
    from fused.fs.waiting import Waiting
    from fused.types import Caller, Fh


MAX_LISTED_INLINE = 64 << 10
"""Size of a directory file, in bytes, with some hundred to some thousand names: listed in a millisecond. A thread lists
100,000 names in 60 ms."""

MOST_ASKED = 100
"""Entries in one reply that take a stat each: a millisecond. The kernel's buffer (128 KiB in Linux 6.18) has room for
ten times as many."""

MOST_NAMED = 1000
"""Entries in one reply that are names alone: a millisecond."""


class Entry(NamedTuple):
    """A file as a reply shows it: the number on the mount and the local file's stat."""

    ino: int
    st: os.stat_result


class Reply(Protocol):
    """A reply to which entries are added."""

    plus: bool
    """Whether attributes are asked for."""

    def add(self, name: bytes, ino: int, kind: int, st: os.stat_result | None, position: int) -> bool:
        """Add an entry: its type as in a mode, its stat if it is to be sent, the position after it. Whether there was
        room."""
        ...


class Tree:
    """All operations that work on names in directories."""

    def __init__(
        self,
        inodes: Inodes,
        handles: Handles,
        reach: Reach,
        changes: ChangeSink,
        waiting: Waiting,
        new_owner: NewOwner,
        listings: Listings,
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._reach = reach
        self._changes = changes
        self._waiting = waiting
        self._new_owner = new_owner
        self._listings = listings

    def lookup(self, parent_ino: int, name: bytes) -> Entry | None:
        """What is called `name`, or None. Adds one to its lookup count."""
        parent = self._inodes.get(parent_ino)
        if name == b"." or name == b"..":  # the kernel asks so only for file handles of NFS and open_by_handle_at
            inode = parent if name == b"." else (parent.parent or self._inodes.root)
            inode.lookups += 1
            return Entry(inode.ino, self._reach.stat(inode))
        self._listings.looked_into(parent)
        try:
            st = layer.stat_at(self._reach.dir_fd(parent), name)
        except FileNotFoundError:
            return None
        return self._known(st, parent, name)

    def _known(self, st: os.stat_result, parent: Inode, name: bytes) -> Entry:
        inode = self._inodes.remember(st, parent, name)
        inode.lookups += 1
        return Entry(inode.ino, st)

    def dirs_of(self, directory: Inode) -> Dirs:
        """For the change sink: a directory and all above it."""
        return partial(self._inodes.directory_and_above, directory)

    def dirs_above(self, inode: Inode) -> Dirs:
        """For the change sink: all directories that contain an inode."""
        return partial(self._inodes.directories_above, inode)

    # Making

    def _before_add(self, parent: Inode) -> int:
        if parent.parent is None and parent is not self._inodes.root:  # removed: nothing can be made in it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        dir_fd = self._reach.dir_fd(parent)
        self._changes.before_add(parent.key, dir_fd, self.dirs_of(parent))
        return dir_fd

    def _added(self, parent: Inode, name: bytes, st: os.stat_result) -> Entry:
        if stat.S_ISREG(st.st_mode):
            self._changes.created((st.st_dev, st.st_ino))
        return self._known(st, parent, name)

    def create(self, parent_ino: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Entry, int]:
        """Make and open a regular file; FileExistsError if the name is taken.

        Adds one to the lookup count. The caller of this function owns the descriptor.
        """
        parent = self._inodes.get(parent_ino)
        dir_fd = self._before_add(parent)
        with self._new_owner.acting_for(caller):
            fd = layer.open_at(dir_fd, name, flags | os.O_CREAT | os.O_EXCL, stat.S_IMODE(mode))
        try:
            return self._added(parent, name, os.fstat(fd)), fd
        except BaseException:
            os.close(fd)
            raise

    def mknod(self, parent_ino: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Make a regular file, fifo, socket or device. Adds one to the lookup count."""
        parent = self._inodes.get(parent_ino)
        dir_fd = self._before_add(parent)
        with self._new_owner.acting_for(caller):
            os.mknod(name, mode, rdev, dir_fd=dir_fd)
        return self._added(parent, name, layer.stat_at(dir_fd, name))

    def mkdir(self, parent_ino: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Make a directory. Adds one to the lookup count."""
        parent = self._inodes.get(parent_ino)
        dir_fd = self._before_add(parent)
        with self._new_owner.acting_for(caller):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=dir_fd)
        return self._added(parent, name, layer.stat_at(dir_fd, name))

    def symlink(self, parent_ino: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Make a symbolic link. Adds one to the lookup count."""
        parent = self._inodes.get(parent_ino)
        dir_fd = self._before_add(parent)
        with self._new_owner.acting_for(caller):
            os.symlink(target, name, dir_fd=dir_fd)
        return self._added(parent, name, layer.stat_at(dir_fd, name))

    def link(self, ino: int, parent_ino: int, name: bytes) -> Entry:
        """Give a file one more name. Adds one to its lookup count."""
        inode = self._inodes.get(ino)
        parent = self._inodes.get(parent_ino)
        before = self._reach.stat(inode)
        if before.st_nlink == 0:  # as on the host: a file without names gets no new ones (link(2), ENOENT)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with self._reach.aim(inode) as aim:
            dir_fd = self._before_add(parent)
            os.link(layer.proc_path(aim.fd), name, dst_dir_fd=dir_fd, follow_symlinks=True)
        after = layer.stat_at(dir_fd, name)
        entry = self._known(after, parent, name)
        self._changes.metadata(inode.key, before, after, self.dirs_above(inode))
        return entry

    # Removing

    def unlink(self, parent_ino: int, name: bytes) -> None:
        """Remove a name of anything but a directory."""
        self._remove(parent_ino, name, directory=False)

    def rmdir(self, parent_ino: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._remove(parent_ino, name, directory=True)

    def _remove(self, parent_ino: int, name: bytes, *, directory: bool) -> None:
        parent = self._inodes.get(parent_ino)
        dir_fd = self._reach.dir_fd(parent)
        kept = layer.open_path(dir_fd, name)
        try:
            before = os.fstat(kept)
            self._changes.before_remove(parent.key, dir_fd, name, self.dirs_of(parent))
            (os.rmdir if directory else os.unlink)(name, dir_fd=dir_fd)
        except BaseException:
            os.close(kept)
            raise
        self._name_gone(before, kept, parent, name)

    def _name_gone(self, before: os.stat_result, kept: int, parent: Inode, name: bytes) -> None:
        """A name was removed or replaced. `kept` is an O_PATH descriptor on what it led to; taken over."""
        inode = self._inodes.find(before)
        key = (before.st_dev, before.st_ino)
        if before.st_nlink < 2 or stat.S_ISDIR(before.st_mode):
            self._changes.gone(key)
        else:
            dirs = self.dirs_above(inode) if inode is not None else self.dirs_of(parent)
            self._changes.metadata(key, before, os.fstat(kept), dirs)
        if inode is None:
            close_soon(kept)
            return
        self._inodes.remove_name(inode, parent, name)
        if inode.parent is None and not self._inodes.drop_if_unused(inode):
            self._reach.adopt_orphan(inode, kept)
        else:
            close_soon(kept)

    # Moving

    def rename(
        self,
        old_parent_ino: int,
        old: bytes,
        new_parent_ino: int,
        new: bytes,
        flags: int,
        caller: Caller | None = None,
    ) -> None:
        """`renameat2` with its flags. RENAME_WHITEOUT leaves a device at the old name, which belongs to `caller`."""
        if flags & ~(layer.RENAME_NOREPLACE | layer.RENAME_EXCHANGE | layer.RENAME_WHITEOUT):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        old_parent = self._inodes.get(old_parent_ino)
        new_parent = self._inodes.get(new_parent_ino)
        old_fd = self._reach.dir_fd(old_parent)
        new_fd = self._reach.dir_fd(new_parent)
        moved = layer.stat_at(old_fd, old)
        try:
            replaced: os.stat_result | None = layer.stat_at(new_fd, new)
        except FileNotFoundError:
            replaced = None
        if replaced is not None and os.path.samestat(moved, replaced):
            layer.rename_at(old_fd, old, new_fd, new, flags)  # two names of one file: the host does nothing
            return
        exchange = bool(flags & layer.RENAME_EXCHANGE)
        kept = layer.open_path(new_fd, new) if replaced is not None and not exchange else None
        try:
            self._changes.before_remove(old_parent.key, old_fd, old, self.dirs_of(old_parent))
            if replaced is None:
                self._changes.before_add(new_parent.key, new_fd, self.dirs_of(new_parent))
            else:
                self._changes.before_remove(new_parent.key, new_fd, new, self.dirs_of(new_parent))
            if caller is not None and flags & layer.RENAME_WHITEOUT:
                with self._new_owner.acting_for(caller):
                    layer.rename_at(old_fd, old, new_fd, new, flags)
            else:
                layer.rename_at(old_fd, old, new_fd, new, flags)
        except BaseException:
            if kept is not None:
                os.close(kept)
            raise
        if replaced is not None and kept is not None:
            self._name_gone(replaced, kept, new_parent, new)
        if replaced is not None and exchange:
            self._moved(replaced, new_parent, new, old_parent, old, old_fd)
        self._moved(moved, old_parent, old, new_parent, new, new_fd)

    def _moved(
        self,
        before: os.stat_result,
        old_parent: Inode,
        old: bytes,
        new_parent: Inode,
        new: bytes,
        new_fd: int,
    ) -> None:
        after = layer.stat_at(new_fd, new)
        inode = self._inodes.find(before)
        if inode is None:
            self._changes.metadata((before.st_dev, before.st_ino), before, after, self.dirs_of(new_parent))
            return
        self._inodes.add_name(inode, new_parent, new)
        self._inodes.remove_name(inode, old_parent, old)
        self._changes.metadata(inode.key, before, after, self.dirs_above(inode))

    # Listing

    def opendir(self, ino: int) -> tuple[Fh, bool]:
        """Open a directory for listing. Also whether the names that were told last are still true."""
        inode = self._inodes.get(ino)
        self._reach.check_room()
        fd = self._reach.open(inode, os.O_RDONLY)
        return self._handles.add_directory(fd, inode).fh, self._listings.is_as_told(inode, os.fstat(fd))

    async def list(self, fh: int) -> None:
        """Take the listing that `show` walks through: before it begins at position 0."""
        handle = self._handles.directory(fh)
        fd = handle.fd
        st = os.fstat(fd)
        if st.st_size > MAX_LISTED_INLINE:
            raw = await self._waiting.offload(lambda: RawListing(fd))
        else:
            raw = RawListing(fd)
        handle.listing = Listing(raw)
        self._listings.begins(handle.inode, st)

    def show(self, fh: int, start: int, reply: Reply) -> None:
        """Add the entries from a position on to a reply, `.` and `..` first, until it is full or has had its share.

        Only a reply without any entry says that there are no more. Each entry that was added with a stat adds one to
        its inode's lookup count.
        """
        handle = self._handles.directory(fh)
        directory = handle.inode
        with_stat = reply.plus and self._listings.wants_attributes(directory, start)
        left = MOST_ASKED if with_stat else MOST_NAMED
        index = start
        while index < 2:
            shown = directory if index == 0 else (directory.parent or directory)
            if not reply.add(b".." if index else b".", shown.ino, stat.S_IFDIR, None, index + 1):
                return
            index += 1
        while left and (entry := handle.listing.at(index - 2)) is not None:
            name, host_ino, kind = entry
            index += 1
            st = None
            if with_stat:
                try:
                    st = layer.stat_at(handle.fd, name)
                except FileNotFoundError:
                    continue
                except PermissionError:  # the directory may be listed but not searched: the name alone
                    pass
            if st is None:
                added = reply.add(name, self._inodes.number_of(directory.dev, host_ino), kind, None, index)
            else:
                added = self._add_with_stat(reply, directory, name, st, index)
            if not added:
                return
            left -= 1

    def _add_with_stat(self, reply: Reply, directory: Inode, name: bytes, st: os.stat_result, position: int) -> bool:
        """Add an entry that the kernel may use as if it had looked it up. Whether there was room."""
        inode = self._inodes.remember(st, directory, name)
        if not reply.add(name, inode.ino, st.st_mode, st, position):
            self._inodes.drop_if_unused(inode)
            return False
        inode.lookups += 1
        return True

    def directory_fd(self, fh: int) -> int:
        """The descriptor of an open directory. Borrowed."""
        return self._handles.directory(fh).fd

    def releasedir(self, fh: int) -> None:
        """Close an open directory."""
        self._handles.release_directory(fh)
