"""The directory that a restore writes into: what is there, and how a thing appears or is replaced.

Nothing here knows of CIDs. Three rules hold for every method:

- A path is a tuple of names. Each is opened relative to its parent's descriptor, never following a
  symlink, so whatever the tree or the target contains, nothing outside the target is touched.
- Nothing appears under its final name before it is complete, with its attributes: it is made under a
  temporary name in the same directory and renamed. What may not replace anything is renamed with
  RENAME_NOREPLACE. Content that replaces other content is fsynced first, because a power cut
  after the rename must not take both.
- What the caller may not do (give files away, make devices, set a privileged xattr) is counted in
  `notes` and the rest goes on. So is what a tree that is not trusted may not bring: whoever made it chose the owners,
  set-ID bits, devices and attributes such as security.capability, and would get a program of his run as another user.
- Attributes are given to the inode that was made or compared, not to what has its name by now: whoever else may
  write to the directory could otherwise have his file swapped for one of ours, and be given that.

Not safe for use by several threads at once: it caches descriptors.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import time
from collections import Counter, OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from fused.errors import DagError
from fused.local import layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fused.dag.meta import Attrs
    from fused.view.directory import Names

_OPEN_DIRECTORIES = 64
"""Directory descriptors kept open. One call uses two at most; the rest saves opening a long path again."""

_ZEROS = bytes(1 << 20)

_libc = ctypes.CDLL(None, use_errno=True)

OWNER_NOT_SET = "owner"
XATTR_NOT_SET = "xattr"
NOT_TRUSTED = "trust"

_SET_ID = stat.S_ISUID | stat.S_ISGID

Key = tuple[int, int]
"""Device and inode number."""


class Skipped(Exception):
    """This entry can't be restored here: a signal inside `view`. The text says why, for a person."""


class Target:
    """An open target directory. `close()` it. Raises OSError of the system call that failed, as it is."""

    def __init__(self, path: str | bytes, *, trusted: bool = True) -> None:
        """Open the directory `path`; a symlink is followed here, and only here: the user named it.

        `trusted`: what is restored was stored from here, so its owners and privileges are.
        """
        self._trusted = trusted
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[Names, int] = OrderedDict()
        self.notes: Counter[str] = Counter()
        self._is_root = os.geteuid() == 0
        self._groups = {os.getegid(), *os.getgroups()}
        self.umask = _umask()

    def close(self) -> None:
        """Release every descriptor. Idempotent."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def sync(self, *, everything: bool) -> None:
        """Make what was written durable: the target's file system, or every one of the machine's.

        `everything` is for a target on a FUSE mount: the kernel does not hand syncfs on to a FUSE
        server (fs/fuse/inode.c, fuse_sync_fs: only where the server asked for it, as virtiofs does),
        so only sync(2) reaches the file system below the server.
        """
        if _libc.syncfs(self._root) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
        if everything:
            os.sync()

    # -- looking ---------------------------------------------------------------------------------

    def directory(self, path: Names) -> int:
        """A descriptor of the directory `path`, borrowed until the next call.

        Raises OSError: ENOENT, or ENOTDIR if anything on the way is a symlink or no directory.
        """
        if not path:
            return self._root
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        # Down from the deepest ancestor that is open: a loop, as a tree may be deeper than Python recurses.
        start = len(path) - 1
        while start and path[:start] not in self._open:
            start -= 1
        fd = self._open[path[:start]] if start else self._root
        for depth in range(start, len(path)):
            fd = layer.open_directory(fd, component(path[depth]))
            self._open[path[: depth + 1]] = fd
            if len(self._open) > _OPEN_DIRECTORIES:
                os.close(self._open.popitem(last=False)[1])
        return fd

    def lstat(self, path: Names) -> os.stat_result | None:
        """What is at `path`; None if nothing is, or if the way there is no chain of real directories."""
        try:
            if not path:
                return os.fstat(self._root)
            return layer.stat_at(self.directory(path[:-1]), component(path[-1]))
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def is_empty(self, path: Names) -> bool:
        """Whether the directory `path` has no entry."""
        with os.scandir(self.directory(path)) as entries:
            return next(entries, None) is None

    def readlink(self, path: Names) -> bytes:
        """The target text of the symlink at `path`."""
        return os.fsencode(os.readlink(component(path[-1]), dir_fd=self.directory(path[:-1])))

    def open_for_reading(self, path: Names) -> int:
        """A descriptor of the regular file at `path`, which the caller closes."""
        fd = layer.open_at(self.directory(path[:-1]), component(path[-1]), os.O_RDONLY)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise _swapped()
        return fd

    def key(self, path: Names) -> Key:
        """Which inode the directory `path` is."""
        st = os.fstat(self.directory(path))
        return (st.st_dev, st.st_ino)

    def attribute_differences(self, path: Names, st: os.stat_result, attrs: Attrs) -> list[str]:
        """Which attributes of the thing at `path` are not as in `attrs`, of those that we could change.

        Names from: "mode", "owner", "group", "mtime", "xattrs". What can't be set is not compared, or a
        second restore as an ordinary user would never find what the first one made to be the same.
        """
        differences = []
        link = stat.S_ISLNK(st.st_mode)
        mode = attrs.mode
        if not self._trusted or (not self._may_own(attrs.uid) and st.st_uid != attrs.uid):
            mode &= ~_SET_ID
        if not link and stat.S_IMODE(st.st_mode) != mode:
            differences.append("mode")
        if self._may_own(attrs.uid) and st.st_uid != attrs.uid:
            differences.append("owner")
        if self._may_group(attrs.gid) and st.st_gid != attrs.gid:
            differences.append("group")
        if st.st_mtime_ns != attrs.mtime_ns:
            differences.append("mtime")
        if self._xattrs(path, st) not in (None, self._settable(attrs.xattrs)):
            differences.append("xattrs")
        return differences

    def _may_own(self, uid: int) -> bool:
        return self._trusted and (self._is_root or uid == os.geteuid())

    def _may_group(self, gid: int) -> bool:
        return self._trusted and (self._is_root or gid in self._groups)

    def _settable(self, xattrs: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        return {name: value for name, value in xattrs if name.startswith(b"user.")}

    def _xattrs(self, path: Names, st: os.stat_result) -> dict[bytes, bytes] | None:
        """The user xattrs of what is at `path`, None where the file system or the kind of file has none."""
        if not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
            return None
        fd = self._handle(path)
        try:
            place = layer.proc_path(fd)
            names = [name for name in layer.list_xattrs(place) if name.startswith(b"user.")]
            return {name: layer.get_xattr(place, name) for name in names}
        except OSError as e:
            if e.errno in (errno.ENOTSUP, errno.EACCES, errno.EPERM):
                return None
            raise
        finally:
            os.close(fd)

    def _handle(self, path: Names) -> int:
        """An O_PATH descriptor, which needs no permission on the thing itself. The caller closes it."""
        if not path:
            return os.dup(self._root)
        return layer.open_path(self.directory(path[:-1]), component(path[-1]))

    # -- making ----------------------------------------------------------------------------------

    def make_directory(self, path: Names, *, replace: bool) -> bool:
        """Make an empty directory only we can enter, and return whether it is new.

        With `replace`, something else than a directory in its place is removed first. Its attributes are
        set by `set_attributes` once its contents are there.
        """
        parent, name = self.directory(path[:-1]), component(path[-1])
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            st = layer.stat_at(parent, name)
            if stat.S_ISDIR(st.st_mode):
                return False
            if not replace:
                raise
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
        return True

    def new_file(self, path: Names) -> NewFile:
        """Begin a regular file that will be `path`."""
        return NewFile(self, path)

    def make_symlink(self, path: Names, text: bytes, attrs: Attrs | None, *, replace: bool) -> None:
        """Make a symlink with its owner and times. Raises FileExistsError without `replace`."""
        self._make(path, lambda parent, name: os.symlink(text, name, dir_fd=parent), stat.S_IFLNK, 0, attrs, replace)

    def make_special(self, path: Names, attrs: Attrs, *, replace: bool) -> None:
        """Make the fifo, socket or device that `attrs` describes.

        Raises Skipped where the system does not let us, FileExistsError without `replace`.
        """
        kind = _SPECIAL_TYPES[attrs.kind]
        if attrs.kind in ("chr", "blk") and not self._trusted:
            raise Skipped(f"is a {_SPECIAL_NAMES[attrs.kind]}, and this tree is not one of your own; --trust makes it")

        def create(parent: int, name: bytes) -> None:
            os.mknod(name, kind | 0o600, attrs.rdev, dir_fd=parent)

        try:
            self._make(path, create, kind, attrs.rdev, attrs, replace)
        except PermissionError as e:
            raise Skipped(f"making a {_SPECIAL_NAMES[attrs.kind]} is not permitted here") from e

    def _make(
        self,
        path: Names,
        create: Callable[[int, bytes], None],
        kind: int,
        rdev: int,
        attrs: Attrs | None,
        replace: bool,
    ) -> None:
        """Create under a temporary name, set the attributes, rename. `kind` and `rdev` are those of what is created."""
        parent, name, temporary = self.directory(path[:-1]), component(path[-1]), _temporary_name()
        create(parent, temporary)
        try:
            if attrs is not None:
                fd = layer.open_path(parent, temporary)
                try:
                    st = os.fstat(fd)
                    made = (stat.S_IFMT(st.st_mode), st.st_uid, st.st_nlink) == (kind, os.geteuid(), 1)
                    if not made or (rdev and st.st_rdev != rdev):
                        raise _swapped()
                    self._attributes(layer.proc_path(fd), attrs)
                finally:
                    os.close(fd)
            put_in_place(parent, temporary, name, replace=replace)
        except BaseException:
            _unlink_quietly(temporary, parent)
            raise

    def make_hard_link(self, existing: Names, path: Names, *, replace: bool) -> None:
        """Make `path` another name of `existing`. Raises FileExistsError without `replace`."""
        parent, name = os.dup(self.directory(path[:-1])), component(path[-1])
        try:
            old_parent, old_name = self.directory(existing[:-1]), component(existing[-1])
            if not replace:
                os.link(old_name, name, src_dir_fd=old_parent, dst_dir_fd=parent, follow_symlinks=False)
                return
            temporary = _temporary_name()
            os.link(old_name, temporary, src_dir_fd=old_parent, dst_dir_fd=parent, follow_symlinks=False)
            # rename(2) does nothing, and leaves both names, if they are already one inode: unlink is then right.
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            _unlink_quietly(temporary, parent)
        finally:
            os.close(parent)

    def set_attributes(self, path: Names, attrs: Attrs, key: Key) -> None:
        """Give what exists at `path`, the inode `key`, the attributes `attrs`."""
        fd = self._handle(path)
        try:
            place = layer.proc_path(fd)
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) != key:
                raise _swapped()
            present = self._xattrs(path, st) or {}
            extra = sorted(present.keys() - dict(attrs.xattrs).keys())
            if (extra or attrs.xattrs) and not self._is_root:
                os.chmod(place, stat.S_IMODE(st.st_mode) | stat.S_IWUSR)
            for name in extra:
                layer.remove_xattr(place, name)
            self._attributes(place, attrs)
        finally:
            os.close(fd)

    def set_default_mode(self, path: Names, key: Key) -> None:
        """Open the directory `key` that we made to whom the umask lets in: the stored tree says nothing about it."""
        fd = self._handle(path)
        try:
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) != key:
                raise _swapped()
            os.chmod(layer.proc_path(fd), 0o777 & ~self.umask)
        finally:
            os.close(fd)

    def _attributes(self, place: layer.Target, attrs: Attrs) -> None:
        """Owner, xattrs, mode, times, in this order.

        chown clears the set-id bits and file capabilities; setting a user xattr needs write permission,
        which the final mode may not give; everything but utime changes a time.
        """
        owned = self._own(attrs, place)
        kept_back = not self._trusted and attrs.mode & _SET_ID != 0 and attrs.kind != "link"
        for name, value in attrs.xattrs:
            if not self._trusted and not name.startswith(b"user."):
                kept_back = True
                continue
            try:
                layer.set_xattr(place, name, value)
            except OSError as e:
                if e.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL):
                    raise
                self.notes[XATTR_NOT_SET] += 1
        self.notes[NOT_TRUSTED] += kept_back
        if attrs.kind != "link":
            # A program that runs as whoever restored it, not as its owner, is a trap (GNU cp -p does the same).
            os.chmod(place, attrs.mode if owned and self._trusted else attrs.mode & ~_SET_ID)
        layer.set_times(place, time.time_ns(), attrs.mtime_ns)

    def _own(self, attrs: Attrs, place: layer.Target) -> bool:
        """Set owner and group as far as permitted; return whether both are now as in `attrs`."""
        st = os.stat(place)
        if (st.st_uid, st.st_gid) == (attrs.uid, attrs.gid):
            return True
        if not self._trusted:
            self.notes[NOT_TRUSTED] += 1
            return False
        try:
            os.chown(place, attrs.uid, attrs.gid)
            return True
        except PermissionError:
            self.notes[OWNER_NOT_SET] += 1
        if st.st_gid != attrs.gid and self._may_group(attrs.gid):
            with suppress(PermissionError):
                os.chown(place, -1, attrs.gid)
        return False


class NewFile:
    """A regular file under a temporary name. Call exactly one of `finish` and `discard`."""

    def __init__(self, target: Target, path: Names) -> None:
        self._target = target
        # Its own descriptor: between two writes the target may close the cached one.
        self._parent = os.dup(target.directory(path[:-1]))
        self._name = component(path[-1])
        self._temporary = _temporary_name()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600, dir_fd=self._parent)
        except BaseException:
            os.close(self._parent)
            raise
        self._size = 0

    def expect(self, size: int) -> None:
        """Say how many bytes will come, so that what no file here can hold fails before the first of them."""
        os.ftruncate(self._fd, size)

    def write(self, chunk: bytes) -> None:
        """Append `chunk`. A MiB of zeros becomes a hole, so that a sparse file does not fill the disk."""
        self._size += len(chunk)
        written = 0
        for at in range(0, len(chunk), len(_ZEROS)):
            # The first byte is looked at first: cutting the slice out of the chunk copies it.
            if chunk[at] == 0 and chunk[at : at + len(_ZEROS)] == _ZEROS:
                self._write(memoryview(chunk)[written:at])
                os.lseek(self._fd, len(_ZEROS), os.SEEK_CUR)
                written = at + len(_ZEROS)
        self._write(memoryview(chunk)[written:])

    def skip(self, size: int) -> None:
        """Append a hole of `size` bytes."""
        self._size += size
        os.lseek(self._fd, size, os.SEEK_CUR)

    def _write(self, rest: memoryview) -> None:
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def finish(self, attrs: Attrs | None, *, replace: bool) -> None:
        """Set the attributes and give the file its name; without `attrs`, what a new file here would have.

        Raises FileExistsError without `replace`. After any error no trace is left.
        """
        try:
            if os.lseek(self._fd, 0, os.SEEK_CUR) != os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, self._size)
            if attrs is None:
                os.fchmod(self._fd, 0o666 & ~self._target.umask)
            else:
                self._target._attributes(self._fd, attrs)
            if replace:
                os.fsync(self._fd)
            put_in_place(self._parent, self._temporary, self._name, replace=replace)
        except BaseException:
            self.discard()
            raise
        self._close()

    def discard(self) -> None:
        """Remove what was written."""
        _unlink_quietly(self._temporary, self._parent)
        self._close()

    def _close(self) -> None:
        os.close(self._fd)
        os.close(self._parent)


_SPECIAL_TYPES = {"fifo": stat.S_IFIFO, "sock": stat.S_IFSOCK, "chr": stat.S_IFCHR, "blk": stat.S_IFBLK}
_SPECIAL_NAMES = {"fifo": "fifo", "sock": "socket", "chr": "character device", "blk": "block device"}


def component(name: bytes) -> bytes:
    """`name`, if it is one component of a path and not a way to another directory.

    The dag layer refuses such names when it decodes a directory; here, where one would reach a system
    call, they are refused again. Raises DagError.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise DagError(f"the name {name!r} can't be the name of a file")
    return name


def _swapped() -> OSError:
    return OSError(errno.ESTALE, "somebody else put something else there meanwhile, so it was left alone")


def put_in_place(parent: int, temporary: bytes, name: bytes, *, replace: bool) -> None:
    """Rename within one directory. Without `replace`, raises FileExistsError if `name` is taken."""
    try:
        layer.rename_at(parent, temporary, parent, name, 0 if replace else layer.RENAME_NOREPLACE)
        return
    except OSError as e:
        if replace or e.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    # A file system without the flag: link(2) never replaces either.
    os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    os.unlink(temporary, dir_fd=parent)


def _temporary_name() -> bytes:
    return b".ipfsfs-restore-" + secrets.token_hex(8).encode()


def _unlink_quietly(name: bytes, parent: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=parent)


def _umask() -> int:
    """The process's umask, which can be read only by setting it: /proc knows it without."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022
