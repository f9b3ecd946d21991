"""pyfuse3's handlers: decode the request, call the file system, encode the reply. Nothing else."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

import pyfuse3
import trio

from fused.fs.attrs import NewAttrs
from fused.fs.replies import handler, waiting_handler
from fused.types import Caller

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from fused.fs.files import Opened
    from fused.fs.filesystem import FileSystem
    from fused.fs.tree import Entry

CACHE_SECONDS = 86_400.0
"""How long the kernel may keep names and attributes. We are the only way to the files, so it is never wrong; a day is
as good as for ever."""


FORGOTTEN_AT_ONCE = 128
"""A millisecond at most."""


def _reply(ino: int, st: os.stat_result) -> pyfuse3.EntryAttributes:
    reply = pyfuse3.EntryAttributes()
    reply.entry_timeout = CACHE_SECONDS
    reply.attr_timeout = CACHE_SECONDS
    reply.st_ino = ino
    reply.st_mode = st.st_mode
    reply.st_nlink = st.st_nlink
    reply.st_uid = st.st_uid
    reply.st_gid = st.st_gid
    reply.st_rdev = st.st_rdev
    reply.st_size = st.st_size
    reply.st_blksize = st.st_blksize
    reply.st_blocks = st.st_blocks
    reply.st_atime_ns = st.st_atime_ns
    reply.st_mtime_ns = st.st_mtime_ns
    reply.st_ctime_ns = st.st_ctime_ns
    return reply


def _entry(entry: Entry) -> pyfuse3.EntryAttributes:
    return _reply(entry.ino, entry.st)


def _no_entry() -> pyfuse3.EntryAttributes:
    """Inode 0: there is no such name, and the kernel may remember that."""
    reply = pyfuse3.EntryAttributes()
    reply.entry_timeout = CACHE_SECONDS
    reply.st_ino = 0
    return reply


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)


def _file_info(opened: Opened) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=opened.fh, direct_io=opened.direct_io, keep_cache=True)


class Handlers(pyfuse3.Operations):
    """The requests of one mount. `on_init` is called when the kernel's first request has come in."""

    def __init__(self, fs: FileSystem, on_init: Callable[[], None]) -> None:
        super().__init__()
        self.enable_writeback_cache = not fs.write_through
        self.request_counters = fs.requests
        self._inodes = fs.inodes
        self._tree = fs.tree
        self._files = fs.files
        self._attributes = fs.attributes
        self._make_room = fs.reach.give_back
        self._waiting = fs.waiting
        self._on_init = on_init

    def init(self) -> None:
        self._on_init()

    def make_room(self) -> bool:
        return self._make_room()

    # Names

    @handler
    def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = self._tree.lookup(parent_inode, name)
        return _no_entry() if entry is None else _entry(entry)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        # The kernel may give back tens of thousands at once, in any order with other requests.
        for start in range(0, len(inode_list), FORGOTTEN_AT_ONCE):
            if start:
                await self._waiting.wait_for(trio.lowlevel.checkpoint)
            for ino, count in inode_list[start : start + FORGOTTEN_AT_ONCE]:
                self._inodes.forget(ino, count)

    @handler
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(self._tree.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @handler
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _entry(self._tree.mkdir(parent_inode, name, mode, _caller(ctx)))

    @handler
    def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(self._tree.symlink(parent_inode, name, target, _caller(ctx)))

    @handler
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(self._tree.link(inode, new_parent_inode, new_name))

    @handler
    def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._tree.unlink(parent_inode, name)

    @handler
    def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._tree.rmdir(parent_inode, name)

    @handler
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self._tree.rename(
            parent_inode_old, name_old, parent_inode_new, name_new, flags, _caller(ctx) if flags else None
        )

    # Attributes

    @handler
    def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _entry(self._attributes.getattr(inode))

    @waiting_handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            await self._files.truncate(inode, attr.st_size, fh)
        new = NewAttrs(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            late=fields.update_ctime,
        )
        if fields.update_size and not new.any:
            return _entry(self._attributes.getattr(inode))
        return _entry(await self._attributes.setattr(inode, new))

    @handler
    def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._attributes.readlink(inode)

    @handler
    def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return self._attributes.access(inode, mode)

    @handler
    def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return self._attributes.getxattr(inode, name)

    @handler
    def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return self._attributes.listxattr(inode, ctx.uid)

    @handler
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._attributes.setxattr(inode, name, value)

    @handler
    def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._attributes.removexattr(inode, name)

    @handler
    def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = self._attributes.statfs()
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = found.f_bsize
        reply.f_frsize = found.f_frsize
        reply.f_blocks = found.f_blocks
        reply.f_bfree = found.f_bfree
        reply.f_bavail = found.f_bavail
        reply.f_files = found.f_files
        reply.f_ffree = found.f_ffree
        reply.f_favail = found.f_favail
        reply.f_namemax = found.f_namemax
        return reply

    # Contents

    @waiting_handler
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return _file_info(await self._files.open(inode, flags))

    @waiting_handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        opened, entry = await self._files.create(parent_inode, name, mode, flags, _caller(ctx))
        return _file_info(opened), _entry(entry)

    @waiting_handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 says bytes and takes any buffer.
        return await self._files.read(fh, off, size)  # type: ignore[return-value]

    @waiting_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(fh, off, buf)

    @handler
    def flush(self, fh: int) -> None:
        # The kernel has written the file's dirty pages out before this (Linux fs/fuse/file.c, fuse_flush). There is
        # nothing to do, but with the write-back cache the request is needed: when the daemon has died, sending those
        # pages fails without a trace (fuse_send_writepage, "fails on broken connection only"), and this request is what
        # makes close() fail. ENOSYS would spare it, for every close from then on.
        if not self.enable_writeback_cache:
            raise pyfuse3.FUSEError(errno.ENOSYS)

    @handler
    def release(self, fh: int) -> None:
        for parent, name in self._files.release(fh):
            # By pyfuse3's own thread: the notification takes locks that a request may hold.
            pyfuse3.invalidate_entry_async(parent.ino, name, ignore_enoent=True)

    @waiting_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(fh, data_only=datasync)

    # Directories

    @handler
    def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self._tree.opendir(inode)

    @waiting_handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id == 0:
            await self._tree.list(fh)
        self._tree.show(fh, start_id, _reply, partial(pyfuse3.readdir_reply, token))

    @handler
    def releasedir(self, fh: int) -> None:
        self._tree.releasedir(fh)

    @waiting_handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._files.fsync_directory(fh, data_only=datasync)
