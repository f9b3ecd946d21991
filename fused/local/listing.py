"""Directories as the kernel lists them, without a Python object for each name: taken in a moment, looked at later.

The change log lists a directory that is about to change on the thread that serves requests. 100,000 names on ext4
cost `os.scandir` and three objects for each 0.25 s there, and `getdents64` 0.03 s.
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUFFER = 1 << 20
_HEAD = Struct("=QqHB")  # struct linux_dirent64, getdents(2): d_ino, d_off, d_reclen, d_type; then the name, with NUL

_libc = ctypes.CDLL(None, use_errno=True)
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t


class RawListing:
    """The entries of a directory. Iterate over it for (name, inode number), without `.` and `..`."""

    def __init__(self, fd: int) -> None:
        """List the directory open at `fd` from its beginning; moves the descriptor's offset. Raises OSError."""
        self._parts: list[bytes] = []
        os.lseek(fd, 0, os.SEEK_SET)
        buffer = ctypes.create_string_buffer(_BUFFER)
        while count := _libc.getdents64(fd, buffer, _BUFFER):
            if count < 0:
                number = ctypes.get_errno()
                if number == errno.ENOENT:  # a removed directory, which is empty: readdir(3) shows its end, too
                    break
                raise OSError(number, os.strerror(number))
            self._parts.append(ctypes.string_at(buffer, count))

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        for name, ino, _ in self.entries():
            yield name, ino

    def entries(self) -> Iterator[tuple[bytes, int, int]]:
        """The same with the type as in a mode (`stat.S_IFMT`), 0 where the file system does not tell."""
        for part in self._parts:
            at = 0
            while at < len(part):
                ino, _, length, kind = _HEAD.unpack_from(part, at)
                start = at + _HEAD.size
                name = part[start : part.index(0, start)]
                at += length
                if name not in (b".", b".."):
                    yield name, ino, kind << 12  # include/linux/fs_types.h, S_DT
