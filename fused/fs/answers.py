"""The handlers of the kernel's requests: decode the message, call the file system, encode the reply. Nothing else.

Each takes the request's head and its body, which is good until the handler returns (or, where it may wait, ends), and
returns the reply's content, or a `Later` for a thread (`waiting.py`). What has no handler here is libfuse's, see
`relay.py`.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from fused.fs import protocol
from fused.fs.attrs import NewAttrs
from fused.fs.protocol import Head, Opcode
from fused.types import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.fs.filesystem import FileSystem
    from fused.fs.waiting import Later

Reply = bytes | memoryview


class Answer(NamedTuple):
    """Who answers a kind of request, and whether by a coroutine."""

    kind: str
    function: Callable[[Head, memoryview], Any]
    waits: bool = False


FORGOTTEN_AT_ONCE = 128
"""A millisecond at most."""

_NOTHING = b""


def _name(body: memoryview, start: int = 0) -> bytes:
    """The one name at the end of a request, which ends with a zero."""
    return bytes(body[start:-1])


def _names(body: memoryview, start: int) -> tuple[bytes, bytes]:
    first, second, _ = bytes(body[start:]).split(b"\0", 2)
    return first, second


def _caller(head: Head, umask: int = 0) -> Caller:
    _, _, _, _, uid, gid, pid, _, _ = head
    return Caller(uid, gid, pid, umask)


class Answers:
    """The requests of one mount. `forget_name` makes the kernel forget a name in a directory."""

    def __init__(self, fs: FileSystem, forget_name: Callable[[int, bytes], None]) -> None:
        self._inodes = fs.inodes
        self._tree = fs.tree
        self._files = fs.files
        self._attributes = fs.attributes
        self._write_back = not fs.write_through
        self._forget_name = forget_name
        self.waiting = fs.waiting
        self.request_counters = fs.requests
        self.make_room = fs.reach.give_back
        self.by_opcode: dict[int, Answer] = {
            Opcode.LOOKUP: Answer("lookup", self._lookup),
            Opcode.GETATTR: Answer("getattr", self._getattr),
            Opcode.SETATTR: Answer("setattr", self._setattr, waits=True),
            Opcode.READLINK: Answer("readlink", self._readlink),
            Opcode.ACCESS: Answer("access", self._access),
            Opcode.GETXATTR: Answer("getxattr", self._getxattr),
            Opcode.LISTXATTR: Answer("listxattr", self._listxattr),
            Opcode.SETXATTR: Answer("setxattr", self._setxattr),
            Opcode.REMOVEXATTR: Answer("removexattr", self._removexattr),
            Opcode.STATFS: Answer("statfs", self._statfs),
            Opcode.MKNOD: Answer("mknod", self._mknod),
            Opcode.MKDIR: Answer("mkdir", self._mkdir),
            Opcode.SYMLINK: Answer("symlink", self._symlink),
            Opcode.LINK: Answer("link", self._link),
            Opcode.UNLINK: Answer("unlink", self._unlink),
            Opcode.RMDIR: Answer("rmdir", self._rmdir),
            Opcode.RENAME: Answer("rename", self._rename),
            Opcode.RENAME2: Answer("rename", self._rename2),
            Opcode.OPEN: Answer("open", self._open, waits=True),
            Opcode.CREATE: Answer("create", self._create, waits=True),
            Opcode.READ: Answer("read", self._read),
            Opcode.WRITE: Answer("write", self._write, waits=True),
            Opcode.FLUSH: Answer("flush", self._flush),
            Opcode.RELEASE: Answer("release", self._release),
            Opcode.FSYNC: Answer("fsync", self._fsync),
            Opcode.OPENDIR: Answer("opendir", self._opendir),
            Opcode.READDIR: Answer("readdir", self._readdir, waits=True),
            Opcode.READDIRPLUS: Answer("readdir", self._readdirplus, waits=True),
            Opcode.RELEASEDIR: Answer("releasedir", self._releasedir),
            Opcode.FSYNCDIR: Answer("fsyncdir", self._fsyncdir),
        }

    # Names

    def _lookup(self, head: Head, body: memoryview) -> Reply:
        found = self._tree.lookup(head[3], _name(body))
        return protocol.NO_ENTRY if found is None else protocol.entry(*found)

    async def forget(self, head: Head, body: memoryview) -> None:
        """Some inodes; the kernel may give back tens of thousands at once, in any order with other requests."""
        if head[1] == Opcode.FORGET:
            self._inodes.forget(head[3], protocol.FORGET.unpack_from(body)[0])
            return
        count, _ = protocol.BATCH_FORGET.unpack_from(body)
        ones = list(
            protocol.FORGET_ONE.iter_unpack(body[protocol.BATCH_FORGET.size :][: protocol.FORGET_ONE.size * count])
        )
        for start in range(0, count, FORGOTTEN_AT_ONCE):
            if start:
                await self.waiting.wait_for(trio.lowlevel.checkpoint)
            for ino, times in ones[start : start + FORGOTTEN_AT_ONCE]:
                self._inodes.forget(ino, times)

    def _mkdir(self, head: Head, body: memoryview) -> Reply:
        mode, umask = protocol.MKDIR.unpack_from(body)
        name = _name(body, protocol.MKDIR.size)
        return protocol.entry(*self._tree.mkdir(head[3], name, mode, _caller(head, umask)))

    def _mknod(self, head: Head, body: memoryview) -> Reply:
        mode, device, umask, _ = protocol.MKNOD.unpack_from(body)
        name = _name(body, protocol.MKNOD.size)
        return protocol.entry(*self._tree.mknod(head[3], name, mode, device, _caller(head, umask)))

    def _symlink(self, head: Head, body: memoryview) -> Reply:
        name, target = _names(body, 0)
        return protocol.entry(*self._tree.symlink(head[3], name, target, _caller(head)))

    def _link(self, head: Head, body: memoryview) -> Reply:
        (ino,) = protocol.LINK.unpack_from(body)
        return protocol.entry(*self._tree.link(ino, head[3], _name(body, protocol.LINK.size)))

    def _unlink(self, head: Head, body: memoryview) -> Reply:
        self._tree.unlink(head[3], _name(body))
        return _NOTHING

    def _rmdir(self, head: Head, body: memoryview) -> Reply:
        self._tree.rmdir(head[3], _name(body))
        return _NOTHING

    def _rename(self, head: Head, body: memoryview) -> Reply:
        (parent,) = protocol.RENAME.unpack_from(body)
        old, new = _names(body, protocol.RENAME.size)
        self._tree.rename(head[3], old, parent, new, 0)
        return _NOTHING

    def _rename2(self, head: Head, body: memoryview) -> Reply:
        parent, flags, _ = protocol.RENAME2.unpack_from(body)
        old, new = _names(body, protocol.RENAME2.size)
        self._tree.rename(head[3], old, parent, new, flags, _caller(head) if flags else None)
        return _NOTHING

    # Attributes

    def _getattr(self, head: Head, _body: memoryview) -> Reply:
        return protocol.attributes(*self._attributes.getattr(head[3]))

    async def _setattr(self, head: Head, body: memoryview) -> Reply:
        (
            valid, _, fh, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid, _,
        ) = protocol.SETATTR.unpack_from(body)  # fmt: skip
        ino = head[3]
        if valid & protocol.SET_SIZE:
            await self._files.truncate(ino, size, fh if valid & protocol.SET_BY_HANDLE else None)
        new = NewAttrs(
            mode=mode if valid & protocol.SET_MODE else None,
            uid=uid if valid & protocol.SET_UID else None,
            gid=gid if valid & protocol.SET_GID else None,
            atime_ns=_time(valid, protocol.SET_ATIME, protocol.SET_ATIME_NOW, atime, atime_ns),
            mtime_ns=_time(valid, protocol.SET_MTIME, protocol.SET_MTIME_NOW, mtime, mtime_ns),
            ctime_ns=_time(valid, protocol.SET_CTIME, 0, ctime, ctime_ns),
        )
        if valid & protocol.SET_SIZE and not new.any:
            return protocol.attributes(*self._attributes.getattr(ino))
        return protocol.attributes(*await self._attributes.setattr(ino, new))

    def _readlink(self, head: Head, _body: memoryview) -> Reply:
        return self._attributes.readlink(head[3])

    def _access(self, head: Head, body: memoryview) -> Reply:
        mask, _ = protocol.MASK.unpack_from(body)
        if not self._attributes.access(head[3], mask):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return _NOTHING

    def _getxattr(self, head: Head, body: memoryview) -> Reply:
        size, _ = protocol.SIZE.unpack_from(body)
        return _sized(self._attributes.getxattr(head[3], _name(body, protocol.SIZE.size)), size)

    def _listxattr(self, head: Head, body: memoryview) -> Reply:
        size, _ = protocol.SIZE.unpack_from(body)
        names = self._attributes.listxattr(head[3], head[4])
        return _sized(b"".join(name + b"\0" for name in names), size)

    def _setxattr(self, head: Head, body: memoryview) -> Reply:
        size, flags = protocol.SETXATTR.unpack_from(body)
        name, rest = bytes(body[protocol.SETXATTR.size :]).split(b"\0", 1)
        self._attributes.setxattr(head[3], name, rest[:size], flags)
        return _NOTHING

    def _removexattr(self, head: Head, body: memoryview) -> Reply:
        self._attributes.removexattr(head[3], _name(body))
        return _NOTHING

    def _statfs(self, _head: Head, _body: memoryview) -> Reply:
        return protocol.space(self._attributes.statfs())

    # Contents

    async def _open(self, head: Head, body: memoryview) -> Reply:
        flags, _ = protocol.OPEN.unpack_from(body)
        fh, direct_io = await self._files.open(head[3], flags)
        return protocol.opened(fh, _file_flags(direct_io=direct_io))

    async def _create(self, head: Head, body: memoryview) -> Reply:
        flags, mode, umask, _ = protocol.CREATE.unpack_from(body)
        name = _name(body, protocol.CREATE.size)
        (fh, direct_io), found = await self._files.create(head[3], name, mode, flags, _caller(head, umask))
        return protocol.entry(*found) + protocol.opened(fh, _file_flags(direct_io=direct_io))

    def _read(self, _head: Head, body: memoryview) -> Reply | Later:
        fh, offset, size = protocol.READ.unpack_from(body)
        return self._files.read(fh, offset, size)

    async def _write(self, _head: Head, body: memoryview) -> Reply:
        fh, offset, size, *_ = protocol.WRITE.unpack_from(body)
        start = protocol.WRITE.size
        done = await self._files.write(fh, offset, body[start : start + size])
        return protocol.SIZE.pack(done, 0)

    def _flush(self, _head: Head, _body: memoryview) -> Reply:
        # The kernel has written the file's dirty pages out before this (Linux fs/fuse/file.c, fuse_flush). There is
        # nothing to do, but with the write-back cache the request is needed: when the daemon has died, sending those
        # pages fails without a trace (fuse_send_writepage, "fails on broken connection only"), and this request is what
        # makes close() fail. ENOSYS would spare it, for every close from then on.
        if not self._write_back:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return _NOTHING

    def _release(self, _head: Head, body: memoryview) -> Reply:
        (fh,) = protocol.HANDLE.unpack_from(body)
        for parent, name in self._files.release(fh):
            self._forget_name(parent.ino, name)
        return _NOTHING

    def _fsync(self, _head: Head, body: memoryview) -> Reply | Later:
        fh, flags = protocol.FSYNC.unpack_from(body)
        return self._files.fsync(fh, data_only=bool(flags & protocol.FSYNC_DATA_ONLY))

    # Directories

    def _opendir(self, head: Head, _body: memoryview) -> Reply:
        fh, unchanged = self._tree.opendir(head[3])
        return protocol.opened(fh, protocol.OPEN_CACHE_DIR | (protocol.OPEN_KEEP_CACHE if unchanged else 0))

    async def _readdir(self, _head: Head, body: memoryview) -> Reply:
        return await self._list(body, plus=False)

    async def _readdirplus(self, _head: Head, body: memoryview) -> Reply:
        return await self._list(body, plus=True)

    async def _list(self, body: memoryview, *, plus: bool) -> Reply:
        fh, start, size = protocol.READ.unpack_from(body)
        if start == 0:
            await self._tree.list(fh)
        reply = protocol.DirectoryReply(size, plus=plus)
        self._tree.show(fh, start, reply)
        return reply.encoded()

    def _releasedir(self, _head: Head, body: memoryview) -> Reply:
        (fh,) = protocol.HANDLE.unpack_from(body)
        self._tree.releasedir(fh)
        return _NOTHING

    def _fsyncdir(self, _head: Head, body: memoryview) -> Reply | Later:
        fh, flags = protocol.FSYNC.unpack_from(body)
        return self._files.fsync_directory(fh, data_only=bool(flags & protocol.FSYNC_DATA_ONLY))


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return time.time_ns()
    return seconds * 1_000_000_000 + nanoseconds if valid & given else None


def _sized(value: bytes, size: int) -> Reply:
    """As getxattr(2) and listxattr(2) have it: with no room the length is asked for."""
    if size == 0:
        return protocol.SIZE.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _file_flags(*, direct_io: bool) -> int:
    return protocol.OPEN_KEEP_CACHE | (protocol.OPEN_DIRECT_IO if direct_io else 0)
