"""The kernel's messages: numbers, formats, and how a stat is written into them. No I/O.

All from Linux include/uapi/linux/fuse.h, which the kernel keeps as it is for ever: a newer kernel speaks the older
protocol that it was answered with. Native byte order, and no padding but what the structures themselves have.
"""

from __future__ import annotations

import stat
import struct
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

MAJOR = 7


class Opcode(IntEnum):
    """The requests that are answered or looked at here (enum fuse_opcode); there are more."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


# Flags of INIT
SPLICE_WRITE = 1 << 7
SPLICE_MOVE = 1 << 8
SPLICE_READ = 1 << 9
HANDLE_KILLPRIV_V2 = 1 << 28
"""Since protocol 7.33 (Linux 5.11)."""

SETXATTR_EXT = 1 << 29
"""Asks for another form of SETXATTR."""

# fuse_setattr_in.valid: which fields are meant
SET_MODE = 1 << 0
SET_UID = 1 << 1
SET_GID = 1 << 2
SET_SIZE = 1 << 3
SET_ATIME = 1 << 4
SET_MTIME = 1 << 5
SET_BY_HANDLE = 1 << 6
SET_ATIME_NOW = 1 << 7
SET_MTIME_NOW = 1 << 8
SET_CTIME = 1 << 10

# fuse_open_out.open_flags
OPEN_DIRECT_IO = 1 << 0
OPEN_KEEP_CACHE = 1 << 1
OPEN_CACHE_DIR = 1 << 3

FSYNC_DATA_ONLY = 1 << 0

REQUEST = struct.Struct("=IIQQIIIHH")
"""fuse_in_header: length, opcode, unique, node, uid, gid, pid, length of extensions, padding."""

Head = tuple[int, int, int, int, int, int, int, int, int]
"""A request's head as `REQUEST` unpacks it; with names it would take a microsecond more."""

REPLY = struct.Struct("=IiQ")
"""fuse_out_header: length, negative errno, unique."""

INIT = struct.Struct("=IIII")
"""The beginning of fuse_init_in and fuse_init_out: major, minor, max_readahead, flags."""

MAX_WRITE = struct.Struct("=I")
MAX_WRITE_AT = 20
"""Where in fuse_init_out the largest write is, in bytes."""

FORGET = struct.Struct("=Q")
BATCH_FORGET = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
SETATTR = struct.Struct("=IIQQQqqqIIIIIIII")
"""valid, padding, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, unused, uid, gid, unused."""

MKNOD = struct.Struct("=IIII")
MKDIR = struct.Struct("=II")
LINK = struct.Struct("=Q")
RENAME = struct.Struct("=Q")
RENAME2 = struct.Struct("=QII")
OPEN = struct.Struct("=II")
CREATE = struct.Struct("=IIII")
READ = struct.Struct("=QQI")
"""The beginning of fuse_read_in: fh, offset, size."""

WRITE = struct.Struct("=QQIIQII")
"""fuse_write_in: fh, offset, size, and what does not matter here. The content follows."""

HANDLE = struct.Struct("=Q")
"""The beginning of fuse_release_in and fuse_flush_in: fh."""

FSYNC = struct.Struct("=QI")
SIZE = struct.Struct("=II")
"""fuse_getxattr_in and fuse_getxattr_out, fuse_write_out: size, padding."""

SETXATTR = struct.Struct("=II")
"""fuse_setxattr_in without SETXATTR_EXT: size of the value, flags. Then the name, a zero, and the value."""

MASK = struct.Struct("=II")

_ENTRY = struct.Struct("=QQQQII")
"""The beginning of fuse_entry_out: node, generation, how long the name and the attributes are good in seconds, and both
in nanoseconds. fuse_attr follows."""

_ATTR_OUT = struct.Struct("=QII")
"""The beginning of fuse_attr_out: how long the attributes are good, in nanoseconds, padding. fuse_attr follows."""

_ATTR = struct.Struct("=QQQqqqIIIIIIIIII")
"""fuse_attr: inode, size, blocks, atime, mtime, ctime, their nanoseconds, mode, links, uid, gid, rdev, blksize, 0."""

OPENED = struct.Struct("=QII")
"""fuse_open_out: fh, flags, padding."""

_STATFS = struct.Struct("=QQQQQIIII24x")
"""fuse_statfs_out: blocks, free, available, files, free, size of a block, longest name, size of a fragment; spare."""

_DIRENT = struct.Struct("=QQII")
"""fuse_dirent: inode, position after it, length of the name, type. The name follows, padded to 8 bytes."""

GOOD_FOR = 86_400
"""Seconds that the kernel may keep names and attributes. We are the only way to the files, so it is never wrong; a day
is as good as for ever."""

_BILLION = 1_000_000_000
_NAME_ALONE = bytes(_ENTRY.size + _ATTR.size)
_GOOD_ATTRIBUTES = _ATTR_OUT.pack(GOOD_FOR, 0, 0)

NO_ENTRY = _ENTRY.pack(0, 0, GOOD_FOR, 0, 0, 0) + bytes(_ATTR.size)
"""Node 0: there is no such name, and the kernel may remember that."""


def entry(ino: int, st: os.stat_result) -> bytes:
    """A name's file. `ino` is its number on the mount, `st` the local file's stat."""
    return _ENTRY.pack(ino, 0, GOOD_FOR, GOOD_FOR, 0, 0) + _attr(ino, st)


def attributes(ino: int, st: os.stat_result) -> bytes:
    """A file's attributes, likewise."""
    return _GOOD_ATTRIBUTES + _attr(ino, st)


def _attr(ino: int, st: os.stat_result) -> bytes:
    atime, atime_ns = divmod(st.st_atime_ns, _BILLION)
    mtime, mtime_ns = divmod(st.st_mtime_ns, _BILLION)
    ctime, ctime_ns = divmod(st.st_ctime_ns, _BILLION)
    return _ATTR.pack(
        ino, st.st_size, st.st_blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        st.st_mode, st.st_nlink, st.st_uid, st.st_gid, encode_device(st.st_rdev), st.st_blksize, 0,
    )  # fmt: skip


def encode_device(number: int) -> int:
    """A device's number in 32 bits (Linux include/linux/kdev_t.h, new_encode_dev). The C library has the same bits in
    these places, and more above them, which the kernel's 12 and 20 bits don't reach."""
    return number & 0xFFFF_FFFF


def space(found: os.statvfs_result) -> bytes:
    """A file system's space."""
    return _STATFS.pack(
        found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
        found.f_bsize, found.f_namemax, found.f_frsize, 0,
    )  # fmt: skip


def opened(fh: int, flags: int) -> bytes:
    """An open file or directory."""
    return OPENED.pack(fh, flags, 0)


class DirectoryReply:
    """The entries of a directory, as many as there is room for (fuse_dirent, or fuse_direntplus if `plus`)."""

    __slots__ = ("_parts", "_room", "plus")

    def __init__(self, room: int, *, plus: bool) -> None:
        """`room` is in bytes."""
        self._room = room
        self._parts: list[bytes] = []
        self.plus = plus

    def add(self, name: bytes, ino: int, kind: int, st: os.stat_result | None, position: int) -> bool:
        """Add an entry: its type as in a mode, its stat if it is to be sent, the position after it. Whether there was
        room. Without a stat the kernel takes the name alone (Linux fs/fuse/readdir.c, fuse_direntplus_link: node 0)."""
        length = len(name)
        part = _DIRENT.pack(ino, position, length, stat.S_IFMT(kind) >> 12) + name + bytes(-length % 8)
        if self.plus:
            part = (_NAME_ALONE if st is None else entry(ino, st)) + part
        self._room -= len(part)
        if self._room < 0:
            return False
        self._parts.append(part)
        return True

    def encoded(self) -> bytes:
        """All that were added."""
        return b"".join(self._parts)
