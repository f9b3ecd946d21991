"""Plain files relative to a descriptor: the `*at` calls as this program uses them.

Nothing here follows a symbolic link, and nothing but `open_beneath` resolves more than one name: a caller walks
component by component from the descriptor that was opened on the covered directory before the mount hid it. `OSError`
passes through.

A *target* is what the metadata calls work on. It is either an open descriptor or the `/proc/self/fd/N` path of an
O_PATH descriptor. The second form reaches an inode without needing any permission on it and without a name that could
change meanwhile, and it reaches a symbolic link itself: the kernel jumps to the inode behind the descriptor and does
not go on to follow it (proc_pid_fd(5), path_resolution(7)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

Target = int | str

_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Added to every open by name. O_NONBLOCK: a name that turned into a fifo must not hang the daemon."""

_OPENAT2 = 437  # on every architecture
_BENEATH = 0x08 | 0x04 | 0x02 | 0x01  # RESOLVE_BENEATH, _NO_SYMLINKS, _NO_MAGICLINKS, _NO_XDEV (openat2(2))

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
_renameat2 = _libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_renameat2.restype = ctypes.c_int


def proc_path(fd: int) -> str:
    """A path that leads to whatever `fd` is open on, also if that has no name any more."""
    return f"/proc/self/fd/{fd}"


def stat_at(dir_fd: int, name: bytes) -> os.stat_result:
    """`fstatat` without following."""
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def open_at(dir_fd: int, name: bytes, flags: int, mode: int = 0) -> int:
    """Open without following and without blocking. The caller closes."""
    return os.open(name, flags | _SAFE, mode, dir_fd=dir_fd)


def open_path(dir_fd: int, name: bytes) -> int:
    """An O_PATH descriptor on the entry itself, of whatever type. Pins the inode number. The caller closes."""
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


def open_directory(dir_fd: int, name: bytes) -> int:
    """A descriptor to work relative to; one that can't be listed where the directory is not readable to us."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_RDONLY, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, flags | os.O_PATH, dir_fd=dir_fd)


def open_beneath(dir_fd: int, path: bytes, flags: int) -> int:
    """Open `path`, of several names, without leaving the directory, its file system, or following any link.

    The caller closes. Raises OSError: ELOOP or ENOTDIR for a link on the way, EXDEV for a way out.
    """
    # Unlike openat, openat2 refuses flags that O_PATH has no use for.
    safe = os.O_NOFOLLOW | os.O_CLOEXEC if flags & os.O_PATH else _SAFE
    how = struct.pack("QQQ", flags | safe, 0, _BENEATH)
    fd: int = _syscall(_OPENAT2, dir_fd, path, how, len(how))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EPERM):  # a kernel before 5.6, or a container's filter that doesn't know it
        return _open_step_by_step(dir_fd, path, flags)
    raise OSError(number, os.strerror(number), os.fsdecode(path))


def _open_step_by_step(dir_fd: int, path: bytes, flags: int) -> int:
    """The same with a descriptor for each directory on the way."""
    *directories, last = path.split(b"/")
    if b".." in directories or last == b".." or path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(path))
    device = os.fstat(dir_fd).st_dev
    here = os.dup(dir_fd)
    try:
        for name in directories:
            step = os.open(name or b".", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = step
        fd = open_at(here, last or b".", flags)
    finally:
        os.close(here)
    if os.fstat(fd).st_dev != device:
        os.close(fd)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fsdecode(path))
    return fd


def reopen(fd: int, flags: int) -> int:
    """Open once more what `fd` (O_PATH or not) is open on. The caller closes."""
    return os.open(proc_path(fd), flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)


def rename_at(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """`renameat2`, which Python has no call for."""
    if flags == 0:
        os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)
    elif _renameat2(old_dir, old, new_dir, new, flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(old), None, os.fsdecode(new))


def write_all(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write all of `data` at `offset`, or raise."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        count = os.pwrite(fd, memoryview(data)[done:], offset + done)
        if count == 0:
            raise OSError(errno.EIO, "the local file took no more bytes")
        done += count
    return done


def set_times(target: Target, atime_ns: int, mtime_ns: int) -> None:
    """Set both times."""
    os.utime(target, ns=(atime_ns, mtime_ns))


def get_xattr(target: Target, name: bytes) -> bytes:
    """One extended attribute; ENODATA if it is not set."""
    return os.getxattr(target, name)


def set_xattr(target: Target, name: bytes, value: bytes, flags: int = 0) -> None:
    """Create or replace one extended attribute, or only one of both (`flags` as in setxattr(2))."""
    os.setxattr(target, name, value, flags)


def remove_xattr(target: Target, name: bytes) -> None:
    """Remove one extended attribute; ENODATA if it is not set."""
    os.removexattr(target, name)


def list_xattrs(target: Target) -> list[bytes]:
    """The names of the extended attributes that this process may see."""
    return [os.fsencode(name) for name in os.listxattr(target)]
