"""The operations of the model test on one directory, which may be a mount or plain: it can't tell.

Every operation takes plain values (paths relative to the directory, numbers of handles) and returns something that
can be compared, or raises OSError. Two sides that are given the same operations must return the same.

What may differ between a mount and a plain directory is left out of the results: inode numbers, sizes of
directories, blocks, access and change times, the order of a listing. Modification times that a program has set are
compared exactly. Those that the clock has set are all the same to us: `RECENT`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # <linux/stat.h>
RECENT = "recent"
LONG_AGO_NS = 1_500_000_000 * 10**9
"""Times that operations set are before this, in 2017; the clock's are after it."""

_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_SYMLINK_FOLLOW = -100, 0x100, 0x400
_F_OFD_SETLK = 37
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def content(length: int, seed: int) -> bytes:
    """The same bytes for the same numbers."""
    return random.Random(seed).randbytes(length)


def shown(data: bytes) -> object:
    """Short enough to be read in a failure, and different for different bytes."""
    return data if len(data) <= 16 else (len(data), hashlib.sha256(data).hexdigest()[:16])


class Failure(str):
    """The name of an errno, in place of a result."""

    __slots__ = ()


def outcome(work: Callable[[], object]) -> object:
    """What `work` returns, or the `Failure` that it ends with."""
    try:
        return work()
    except OSError as error:
        return Failure(errno.errorcode.get(error.errno or 0, repr(error)))


def _call(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Side:
    """A directory and what is open in it. Handles and mappings are numbered by the caller."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.user = 0
        self.handles: dict[int, int] = {}
        self.maps: dict[int, tuple[mmap.mmap, int]] = {}
        """Shared mappings of a whole file, each with a descriptor that is good for fstat only (O_PATH)."""
        self.vague: dict[int, int] = {}
        """Files whose mtime can't be told, as it was set by a mapping: O_PATH descriptors by inode number."""

    def run(self, name: str, *arguments: object) -> object:
        """The outcome of one operation, which is a method's name."""
        with self._inside():
            return outcome(lambda: getattr(self, name)(*arguments))

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """As the current user, in the directory: so that nothing above it matters."""
        os.chdir(self.root)
        try:
            if self.user:
                os.setegid(self.user)
                os.seteuid(self.user)
            yield
        finally:
            if self.user:
                os.seteuid(0)
                os.setegid(0)
            os.chdir("/")

    def _fd(self, slot: int) -> int:
        if slot not in self.handles:
            raise OSError(errno.EBADF, "nothing is open under this number")
        return self.handles[slot]

    def mtime(self, st: os.stat_result) -> int | str | None:
        """The modification time as far as two sides have to agree on it."""
        if st.st_ino in self.vague:
            return None
        return st.st_mtime_ns if st.st_mtime_ns < LONG_AGO_NS else RECENT

    def _attributes(self, st: os.stat_result) -> tuple[object, ...]:
        size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
        return stat.filemode(st.st_mode), st.st_nlink, st.st_uid, st.st_gid, size, st.st_rdev, self.mtime(st)

    # Names

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        _call(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))

    def link(self, old: str, new: str, follow: bool) -> None:
        _link(old, new, follow=follow)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def mknod(self, path: str, kind: int, mode: int) -> None:
        if kind == stat.S_IFSOCK:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path)
        else:
            os.mknod(path, kind | mode, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def scandir(self, path: str) -> list[object]:
        with os.scandir(path) as entries:
            return sorted(
                (e.name, e.is_dir(follow_symlinks=False), self._attributes(os.lstat(e.path))) for e in entries
            )

    # Attributes

    def lstat(self, path: str) -> object:
        return self._attributes(os.lstat(path))

    def stat(self, path: str) -> object:
        return self._attributes(os.stat(path))

    def access(self, path: str, mask: int) -> bool:
        return os.access(path, mask, effective_ids=True)

    def chmod(self, path: str, mode: int) -> object:
        os.chmod(path, mode)
        return self.stat(path)

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> object:
        os.chown(path, uid, gid, follow_symlinks=follow)
        return self.lstat(path)

    def utime(self, path: str, atime_ns: int, mtime_ns: int, follow: bool) -> object:
        _utimens(_AT_FDCWD, path, atime_ns, mtime_ns, 0 if follow else _AT_SYMLINK_NOFOLLOW)
        st = os.stat(path, follow_symlinks=follow)
        self._time_set(st, mtime_ns)
        # Reading may set the access time at any moment, but not between these two calls.
        return None if atime_ns in (UTIME_NOW, UTIME_OMIT) else st.st_atime_ns, self.mtime(st)

    def setxattr(self, path: str, name: str, length: int, flags: int, follow: bool) -> None:
        os.setxattr(path, name, content(length, length), flags, follow_symlinks=follow)

    def getxattr(self, path: str, name: str) -> object:
        return shown(os.getxattr(path, name))

    def listxattr(self, path: str, follow: bool) -> list[str]:
        # Security modules of the host may label the one file system and not the other.
        return sorted(n for n in os.listxattr(path, follow_symlinks=follow) if not n.startswith("security."))

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, name)

    # Contents by name

    def write_file(self, path: str, length: int, seed: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
        try:
            os.write(fd, content(length, seed))
        finally:
            os.close(fd)

    def read_file(self, path: str) -> object:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return shown(os.read(fd, 8 << 20))
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> object:
        os.truncate(path, size)
        return self.stat(path)

    # Handles

    def open(self, slot: int, path: str, flags: int, mode: int) -> object:
        self._close(slot)
        # Without O_NONBLOCK a fifo would wait for its other end.
        self.handles[slot] = os.open(path, flags | os.O_NONBLOCK, mode)
        return self._attributes(os.fstat(self.handles[slot]))

    def _close(self, slot: int) -> None:
        fd = self.handles.pop(slot, None)
        if fd is not None:
            os.close(fd)

    def close(self, slot: int) -> None:
        self._close(slot)

    def reopen(self, slot: int, other: int, flags: int) -> None:
        """Open once more what a handle is open on, though it may have no name any more."""
        place = f"/proc/self/fd/{self._fd(slot)}"
        fd = os.open(place, flags | os.O_NONBLOCK)
        self._close(other)
        self.handles[other] = fd

    def write(self, slot: int, length: int, seed: int) -> int:
        return os.write(self._fd(slot), content(length, seed))

    def pwrite(self, slot: int, offset: int, length: int, seed: int) -> int:
        return os.pwrite(self._fd(slot), content(length, seed), offset)

    def read(self, slot: int, length: int) -> object:
        return shown(os.read(self._fd(slot), length))

    def pread(self, slot: int, offset: int, length: int) -> object:
        return shown(os.pread(self._fd(slot), length, offset))

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        # What a position in a directory means is every file system's own business.
        if stat.S_ISDIR(os.fstat(self._fd(slot)).st_mode):
            raise OSError(errno.EISDIR, "not tried")
        return os.lseek(self._fd(slot), offset, whence)

    def seek_hole(self, slot: int, offset: int, whence: int) -> int:
        return self.lseek(slot, offset, whence)

    def ftruncate(self, slot: int, size: int) -> object:
        os.ftruncate(self._fd(slot), size)
        return self.fstat(slot)

    def copy(self, slot: int, offset: int, other: int, to: int, length: int) -> int:
        done = 0
        while done < length:
            count = os.copy_file_range(self._fd(slot), self._fd(other), length - done, offset + done, to + done)
            if count == 0:
                break
            done += count
        return done

    def fallocate(self, slot: int, length: int) -> None:
        try:
            _call(_libc.fallocate(self._fd(slot), 0, ctypes.c_long(0), ctypes.c_long(length)))
        except OSError as error:
            # The kernel sets the mtime before it has asked, so the first refusal of a mount does, and no later one.
            if error.errno == errno.EOPNOTSUPP:
                self.blur(self._fd(slot))
            raise

    def posix_fallocate(self, slot: int, length: int) -> None:
        # glibc's way round where fallocate is missing needs a handle that reads, and does not append. Within the
        # file it changes nothing, not even the mtime.
        flags = fcntl.fcntl(self._fd(slot), fcntl.F_GETFL)
        if flags & os.O_ACCMODE != os.O_RDWR or flags & os.O_APPEND:
            raise OSError(errno.EBADF, "not tried")
        st = os.fstat(self._fd(slot))
        if not stat.S_ISREG(st.st_mode) or st.st_size >= length:
            raise OSError(errno.ENODEV, "not tried")
        os.posix_fallocate(self._fd(slot), 0, length)

    def fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self._fd(slot))

    def fstat(self, slot: int) -> object:
        return self._attributes(os.fstat(self._fd(slot)))

    def fchmod(self, slot: int, mode: int) -> object:
        os.fchmod(self._fd(slot), mode)
        return self.fstat(slot)

    def fchown(self, slot: int, uid: int, gid: int) -> object:
        os.fchown(self._fd(slot), uid, gid)
        return self.fstat(slot)

    def futime(self, slot: int, atime_ns: int, mtime_ns: int) -> object:
        _utimens(self._fd(slot), None, atime_ns, mtime_ns, 0)
        st = os.fstat(self._fd(slot))
        self._time_set(st, mtime_ns)
        return self.mtime(st)

    def _time_set(self, st: os.stat_result, mtime_ns: int) -> None:
        mapped = any(os.fstat(pin).st_ino == st.st_ino for _, pin in self.maps.values())
        if mtime_ns != UTIME_OMIT and st.st_ino in self.vague and not mapped:
            os.close(self.vague.pop(st.st_ino))

    def fsetxattr(self, slot: int, name: str, length: int, flags: int) -> None:
        os.setxattr(self._fd(slot), name, content(length, length), flags)

    def fgetxattr(self, slot: int, name: str) -> object:
        return shown(os.getxattr(self._fd(slot), name))

    def flistdir(self, slot: int) -> list[str]:
        return sorted(os.listdir(self._fd(slot)))

    def openat(self, slot: int, name: str, other: int, flags: int) -> None:
        fd = os.open(name, flags | os.O_NONBLOCK, 0o644, dir_fd=self._fd(slot))
        self._close(other)
        self.handles[other] = fd

    def linkat(self, slot: int, path: str) -> None:
        """Give what a handle is open on (perhaps without a name) a name."""
        _link(f"/proc/self/fd/{self._fd(slot)}", path, follow=True)

    def flock(self, slot: int, operation: int) -> None:
        fcntl.flock(self._fd(slot), operation | fcntl.LOCK_NB)

    def lock_range(self, slot: int, kind: int, start: int, length: int) -> None:
        """An open file description lock: those of processes never meet within one process."""
        fcntl.fcntl(self._fd(slot), _F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))

    # Mappings

    def map(self, slot: int, number: int) -> int:
        st = os.fstat(self._fd(slot))
        if not stat.S_ISREG(st.st_mode) or st.st_size == 0:
            raise OSError(errno.EINVAL, "not tried")
        mapping = mmap.mmap(self._fd(slot), st.st_size, mmap.MAP_SHARED)
        pin = os.open(f"/proc/self/fd/{self._fd(slot)}", os.O_PATH)
        self.unmap(number)
        self.maps[number] = mapping, pin
        return st.st_size

    def _mapped(self, number: int) -> tuple[mmap.mmap, int]:
        """The mapping, and how far its file reaches: beyond the last page there is only SIGBUS."""
        if number not in self.maps:
            raise OSError(errno.EBADF, "nothing is mapped under this number")
        mapping, pin = self.maps[number]
        return mapping, min(len(mapping), os.fstat(pin).st_size)

    def map_write(self, number: int, offset: int, length: int, seed: int) -> int:
        mapping, size = self._mapped(number)
        end = min(size, offset + length)
        if end <= offset:
            return 0
        mapping[offset:end] = content(length, seed)[: end - offset]
        self.blur(self.maps[number][1])
        return end - offset

    def blur(self, fd: int) -> None:
        """The mtime of what `fd` is open on can't be told from now on."""
        if os.fstat(fd).st_ino not in self.vague:
            self.vague[os.fstat(fd).st_ino] = os.open(f"/proc/self/fd/{fd}", os.O_PATH)

    def map_read(self, number: int, offset: int, length: int) -> object:
        mapping, size = self._mapped(number)
        return shown(mapping[offset : min(size, offset + length)])

    def msync(self, number: int) -> None:
        mapping, size = self._mapped(number)
        mapping.flush(0, size)

    def unmap(self, number: int) -> None:
        if number in self.maps:
            mapping, pin = self.maps.pop(number)
            mapping.close()
            os.close(pin)

    # The end

    def let_go(self) -> None:
        """Close and unmap everything. What fails then (on a dead mount) is gone all the same."""
        for number in list(self.maps):
            self.unmap(number)
        for slot in list(self.handles):
            with suppress(OSError):
                self._close(slot)
        for pin in self.vague.values():
            with suppress(OSError):
                os.utime(f"/proc/self/fd/{pin}", ns=(LONG_AGO_NS - 1, LONG_AGO_NS - 1))
            os.close(pin)
        self.vague.clear()


def _link(old: str, new: str, *, follow: bool) -> None:
    """linkat(2): Python's `os.link` takes the old call, which never follows, where it can."""
    flags = _AT_SYMLINK_FOLLOW if follow else 0
    _call(_libc.linkat(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


def _utimens(fd: int, path: str | None, atime_ns: int, mtime_ns: int, flags: int) -> None:
    """utimensat(2), or futimens(3) where there is no path. A time is UTIME_NOW, UTIME_OMIT, or other nanoseconds."""
    times = (_Timespec * 2)()
    for at, time_ns in enumerate((atime_ns, mtime_ns)):
        if time_ns in (UTIME_NOW, UTIME_OMIT):
            times[at] = _Timespec(0, time_ns)
        else:
            times[at] = _Timespec(*divmod(time_ns, 10**9))
    _call(_libc.futimens(fd, times) if path is None else _libc.utimensat(fd, os.fsencode(path), times, flags))
