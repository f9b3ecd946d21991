"""Attributes: stat and its changes, links' targets, extended attributes, permission questions, free space."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fused.fs.tree import Entry
from fused.local import layer

if TYPE_CHECKING:
    from fused.fs.changes_protocol import ChangeSink
    from fused.fs.inodes import Inode, Inodes
    from fused.fs.mtimes import ModificationTimes
    from fused.fs.reach import Reach
    from fused.fs.waiting import Waiting


@dataclass(slots=True)  # not frozen: that takes twice as long to make
class NewAttrs:
    """What a setattr changes; None leaves it as it is.

    With the write-back cache the kernel keeps account of the times itself and sends `ctime_ns`, which nobody can set,
    with each change. It also sends the two times by themselves when nobody asked for anything: the modification time
    after writes, and the ctime after a rename, a link or an unlink (Linux fs/fuse/inode.c, fuse_write_inode).
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    @property
    def any(self) -> bool:
        """Whether anything is to be changed."""
        return self.mtime_ns is not None or not self._only_mtime_or_nothing

    @property
    def only_mtime(self) -> bool:
        """Whether the modification time is to be changed and nothing else."""
        return self.mtime_ns is not None and self._only_mtime_or_nothing

    @property
    def _only_mtime_or_nothing(self) -> bool:
        return self.mode is None and self.uid is None and self.gid is None and self.atime_ns is None


_CAPABILITY = b"security.capability"
_ACL = b"system.posix_acl_"

_CONFIRMED_NS = 50_000_000
"""The ctime that the kernel sends after a change of names is later than the local file's by what the request took."""

_NOW_NS = 5_000_000_000
"""Times this close to now may have been asked for as "now": the handler has the clock's reading, not the request."""


class Attributes:
    """All operations on an inode that leave its content and its names alone."""

    def __init__(
        self,
        root_fd: int,
        inodes: Inodes,
        reach: Reach,
        changes: ChangeSink,
        waiting: Waiting,
        mtimes: ModificationTimes | None,
        *,
        private: bool,
    ) -> None:
        """`mtimes` is None on a write-through mount."""
        self._root_fd = root_fd
        self._inodes = inodes
        self._reach = reach
        self._changes = changes
        self._waiting = waiting
        self._mtimes = mtimes
        self._private = private

    def getattr(self, ino: int) -> Entry:
        """The file's stat."""
        return Entry(ino, self._reach.stat(self._inodes.get(ino)))

    async def setattr(self, ino: int, new: NewAttrs) -> Entry:
        """Change owner, mode and times, in this order: a change of owner takes the set-ID bits away.

        Nothing to change is what comes of a chown that leaves user and group as they are: it sets the ctime. Waits in a
        thread if the local file system may have to, as it does while another thread writes to the file.
        """
        inode = self._inodes.get(ino)
        if self._waiting.busy(ino):
            return await self._setattr_in_thread(inode, new)
        if new.ctime_ns is not None and new.only_mtime:
            st = self._reach.stat(inode)
            if st.st_mtime_ns == new.mtime_ns and new.ctime_ns - st.st_ctime_ns < _CONFIRMED_NS:
                if self._mtimes is not None:
                    self._mtimes.told(inode, st.st_mtime_ns)
                return Entry(ino, st)  # the local file has it all from what was done just now
        with self._reach.aim(inode) as aim:
            before = after = os.fstat(aim.fd)
            try:
                self._set(aim.target, before, new)
                if new.mtime_ns is not None and self._mtimes is not None:
                    self._mtimes.told(inode, new.mtime_ns)
            finally:
                after = self._changed(inode, aim.fd, before)
        return Entry(ino, after)

    async def _setattr_in_thread(self, inode: Inode, new: NewAttrs) -> Entry:
        if self._changes.held(inode.key):
            await self._waiting.wait_for(lambda: self._changes.wait_to_begin(inode.key))
        with self._reach.aim(inode) as aim:
            fd = os.dup(aim.fd)
            target = fd if isinstance(aim.target, int) else layer.proc_path(fd)
        before = None

        def work() -> None:
            nonlocal before
            before = os.fstat(fd)
            self._set(target, before, new)

        try:
            # Under way like a change of content: an instant must not fall between it and its announcement.
            with self._changes.change(inode.key):
                await self._waiting.offload(work, on=inode.ino)
            if new.mtime_ns is not None and self._mtimes is not None:
                self._mtimes.told(inode, new.mtime_ns)
                self._mtimes.written(inode)  # before or after: the thread that writes to the file knows
        finally:
            try:
                if before is not None:
                    after = self._changed(inode, fd, before)
            finally:
                os.close(fd)
        return Entry(inode.ino, after)

    def _set(self, target: layer.Target, before: os.stat_result, new: NewAttrs) -> None:
        """In any thread."""
        if new.uid is not None or new.gid is not None or not new.any:
            os.chown(target, -1 if new.uid is None else new.uid, -1 if new.gid is None else new.gid)
        if new.mode is not None:
            os.chmod(target, stat.S_IMODE(new.mode))
        if new.atime_ns is not None or new.mtime_ns is not None:
            self._set_times(target, before, new)

    def _changed(self, inode: Inode, fd: int, before: os.stat_result) -> os.stat_result:
        """After a change of metadata, also one that failed half-way: tell the change sink. Returns the new stat."""
        after = os.fstat(fd)
        self._changes.metadata(inode.key, before, after, partial(self._inodes.directories_above, inode))
        return after

    def _set_times(self, target: layer.Target, before: os.stat_result, new: NewAttrs) -> None:
        # A time that is not to change is set to what it is: the same as UTIME_OMIT, since nobody else changes it.
        atime_ns = before.st_atime_ns if new.atime_ns is None else new.atime_ns
        mtime_ns = before.st_mtime_ns if new.mtime_ns is None else new.mtime_ns
        try:
            layer.set_times(target, atime_ns, mtime_ns)
        except PermissionError:
            # We may write to the file but don't own it. Setting times to now is allowed then (utimensat(2)), and the
            # kernel's own late update must not fail: close() would report it. Our writes have set the time already.
            if new.atime_ns is None and new.ctime_ns is not None:
                return
            now = time.time_ns()
            if abs(now - atime_ns) > _NOW_NS or abs(now - mtime_ns) > _NOW_NS:
                raise
            os.utime(target)

    def readlink(self, ino: int) -> bytes:
        """A symbolic link's target."""
        inode = self._inodes.get(ino)
        with self._reach.aim(inode) as aim:
            # An empty name means the O_PATH descriptor itself (readlinkat(2), since Linux 2.6.39).
            return os.readlink(b"", dir_fd=aim.fd)

    # Extended attributes. The names `security.*` and `trusted.*` are the host's to allow or refuse.

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """One attribute's value."""
        inode = self._inodes.get(ino)
        if name == _CAPABILITY:
            return self._capability(inode)
        with self._reach.aim(inode) as aim:
            return layer.get_xattr(aim.target, name)

    def _capability(self, inode: Inode) -> bytes:
        """Asked before every single write (Linux fs/inode.c, file_remove_privs), and hardly any file has one."""
        if inode.without_capability:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        try:
            with self._reach.aim(inode) as aim:
                return layer.get_xattr(aim.target, _CAPABILITY)
        except OSError as error:
            inode.without_capability = error.errno in (errno.ENODATA, errno.EOPNOTSUPP)
            raise

    def listxattr(self, ino: int, uid: int) -> list[bytes]:
        """The attributes' names, as `uid` may see them: root sees those of the namespace `trusted` too (xattr(7))."""
        with self._reach.aim(self._inodes.get(ino)) as aim:
            names = layer.list_xattrs(aim.target)
        return names if uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set one attribute; `flags` as in setxattr(2)."""
        if not self._private and name.startswith(_ACL):
            # The kernel would check modes only, so an access control list would be stored and not obeyed.
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        inode = self._inodes.get(ino)
        inode.without_capability = False
        with self._reach.aim(inode) as aim:
            before = os.fstat(aim.fd)
            layer.set_xattr(aim.target, name, value, flags)
            self._changed(inode, aim.fd, before)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove one attribute."""
        inode = self._inodes.get(ino)
        with self._reach.aim(inode) as aim:
            before = os.fstat(aim.fd)
            try:
                layer.remove_xattr(aim.target, name)
            except PermissionError:
                if name != _CAPABILITY:
                    raise
                # To remove it by name takes CAP_SETFCAP, which the kernel has asked of a program that does so. From
                # others it comes when they write to the file (Linux fs/inode.c, __file_remove_privs). A change of
                # owner takes it away as that write would, and need not change the owner.
                os.chown(aim.target, -1, -1)
            self._changed(inode, aim.fd, before)

    def access(self, ino: int, mask: int) -> bool:
        """Whether the daemon's user may do this with the file; on a private mount there is no other user."""
        with self._reach.aim(self._inodes.get(ino)) as aim:
            return os.access(layer.proc_path(aim.fd), mask, effective_ids=os.access in os.supports_effective_ids)

    def statfs(self) -> os.statvfs_result:
        """Space on the file system that holds the covered directory."""
        return os.fstatvfs(self._root_fd)
