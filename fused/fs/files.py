"""Contents of regular files: open, create, read, write, truncate, fsync, release.

With the write-back cache the kernel decides what is written when, and the flags of an `open` are its business:
it reads pages of files opened write-only, so the local file is opened read-write; it works out the offset of an
append, so O_APPEND is not passed on (pwrite would ignore the offset, pwrite(2) BUGS); it sends fsync for O_SYNC.

What can't wait is done inline. A change that may be held up by the disk, or by others who write to it, is announced
inline and then made in a thread (`_change`). The kernel has no two changes of one page under way at a time, nor a write
and a change of size (Linux fs/fuse/file.c: a page is not sent again before it was answered, fuse_set_nowrite), so
threads need no order among themselves.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from fused.fs.mounts import filesystem_type
from fused.fs.pace import IN_MEMORY, Pace
from fused.fs.waiting import Later
from fused.local import layer
from fused.local.closing import close_soon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fused.fs.changes_protocol import ChangeSink, Save
    from fused.fs.handles import FileHandle, Handles
    from fused.fs.inodes import Inode, Inodes
    from fused.fs.mtimes import ModificationTimes
    from fused.fs.reach import Reach
    from fused.fs.tree import Entry, Tree
    from fused.fs.waiting import Waiting
    from fused.types import Caller, Fh, FileKey

_NOT_PASSED_ON = os.O_APPEND | os.O_TRUNC | os.O_CREAT | os.O_EXCL | os.O_DIRECT | os.O_SYNC | os.O_DSYNC
_PASSED_ON = os.O_ACCMODE | os.O_NOATIME
"""All flags of open(2) but these two either do nothing on a regular file or are the kernel's to keep."""

_SET_ID = stat.S_ISUID | stat.S_ISGID

MAX_READ = 1 << 20
"""The largest read request: FUSE_MAX_MAX_PAGES pages (Linux fs/fuse/fuse_i.h)."""


T = TypeVar("T")

LARGE_WRITE = 256 << 10

MAX_INLINE_CUT = 4 << 20
"""Cutting off more than this is done in a thread."""


class OnLargeWrite(Protocol):
    """Is told of each write of LARGE_WRITE bytes or more, before it is made. `slow`: in a thread."""

    def __call__(self, *, slow: bool) -> None: ...


class Opened(NamedTuple):
    """A file that was just opened. With `direct_io` the kernel keeps no pages of it."""

    fh: Fh
    direct_io: bool


class Files:
    """All operations on the content of regular files."""

    def __init__(
        self,
        inodes: Inodes,
        handles: Handles,
        reach: Reach,
        tree: Tree,
        changes: ChangeSink,
        waiting: Waiting,
        mtimes: ModificationTimes | None,
        *,
        private: bool = True,
    ) -> None:
        """`mtimes` is None on a write-through mount. On a `private` one nobody but the daemon's user makes requests."""
        self._private = private
        self._inodes = inodes
        self._handles = handles
        self._reach = reach
        self._tree = tree
        self._changes = changes
        self._waiting = waiting
        self._mtimes = mtimes
        # Replies are copied out before anything else runs, so all inline reads share one buffer, and none is zeroed.
        self._buffer = memoryview(bytearray(MAX_READ))
        self._no_nowait: dict[int, bool] = {}  # by st_dev: whether reads there are quick all the same
        self._ahead: set[int] = set()  # by Ino: the kernel shows more of these than there is, see `release`
        self._pace = Pace(inodes.root.dev)
        self.on_large_write: OnLargeWrite | None = None
        """Set by the session that serves requests."""

    # Opening

    async def open(self, ino: int, flags: int) -> Opened:
        """Open an existing file; with O_TRUNC it is empty afterwards."""
        return await self._open(self._inodes.get(ino), flags)

    async def create(self, parent_ino: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Opened, Entry]:
        """Open a file, making it if it is not there. Adds one to its lookup count."""
        self._reach.check_room()
        local_flags = (flags & ~os.O_ACCMODE & _PASSED_ON) | os.O_RDWR
        try:
            entry, fd = self._tree.create(parent_ino, name, mode, local_flags, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            if not self._private:
                # The kernel took the name for free, so it has not asked whether the caller may open this file. ESTALE
                # makes it look again, and ask (Linux fs/namei.c, do_filp_open).
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
            found = self._tree.lookup(parent_ino, name)
            if found is None:
                raise
            try:
                return await self._open(self._inodes.get(found.ino), flags), found
            except BaseException:
                self._inodes.forget(found.ino, 1)
                raise
        inode = self._inodes.get(entry.ino)
        inode.without_capability = True  # new files have none, and the kernel asks before the first write
        return Opened(self._opened(fd, inode, flags, entry.st).fh, direct_io=False), entry

    async def _open(self, inode: Inode, flags: int) -> Opened:
        self._reach.check_room()
        wants = flags & os.O_ACCMODE
        writes = wants != os.O_RDONLY or bool(flags & os.O_TRUNC)
        passed = flags & ~os.O_ACCMODE & _PASSED_ON
        direct_io = False
        try:
            fd = self._reach.open(inode, passed | (os.O_RDWR if writes else os.O_RDONLY))
        except PermissionError:
            if wants != os.O_WRONLY:
                raise
            # May be written but not read (mode 0200, say): then the write-back cache can't fill up pages of it.
            fd = self._reach.open(inode, passed | os.O_WRONLY)
            direct_io = self._mtimes is not None
        handle = self._opened(fd, inode, flags, os.fstat(fd) if writes and not direct_io else None)
        if flags & os.O_TRUNC:
            try:
                await self._truncate(handle.fd, inode, 0)
            except BaseException:
                self.release(handle.fh)
                raise
        return Opened(handle.fh, direct_io)

    def _opened(self, fd: int, inode: Inode, flags: int, writes_to: os.stat_result | None) -> FileHandle:
        """`writes_to` is the file's stat if the kernel keeps account of this handle's writes."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        handle = self._handles.add_file(fd, inode, writable=writable, dirs=self._tree.dirs_above(inode))
        if self._mtimes is not None and writes_to is not None:
            handle.mtimes = self._mtimes
            self._mtimes.opened(inode, writes_to)
        return handle

    def release(self, fh: int) -> Iterator[tuple[Inode, bytes]]:
        """The last descriptor of this open is closed and nothing of it is mapped any more.

        Returns the names, as (directory, name), that the kernel has to forget. What could not be written out (the disk
        was full, say) has been reported to its writer, but the kernel still shows it: it keeps account of size and
        pages itself while it knows the inode, and believes no attributes of ours (Linux fs/fuse/inode.c,
        fuse_get_cache_mask). A name that is forgotten lets go of the inode, and the next lookup shows what there is.
        """
        handle = self._handles.file(fh)
        if handle.mtimes is not None:
            settled = handle.mtimes.closed(handle.inode, handle.fd)
            if settled is not None:
                self._changes.metadata(handle.key, *settled, handle.dirs)
        large = handle.changed_in_thread or handle.inode.parent is None
        (close_soon if large else os.close)(self._handles.release_file(fh))
        if handle.inode.ino in self._ahead and not self._handles.of(handle.inode):
            self._ahead.discard(handle.inode.ino)
            return handle.inode.names()
        return iter(())

    # Content

    def read(self, fh: int, offset: int, size: int) -> bytes | memoryview | Later:
        """Up to `size` bytes, fewer only at the end of the file; later if the local file system has to wait.

        The result is good until the next call.
        """
        handle = self._handles.file(fh)
        if size <= MAX_READ:
            found = self._read_now(handle, offset, size)
            if found is not None:
                return found
        fd = handle.fd
        return Later(lambda: os.pread(fd, size, offset))

    def _read_now(self, handle: FileHandle, offset: int, size: int) -> memoryview | None:
        """Read what is in memory; None if that is not all of it."""
        fd = handle.fd
        quick = self._no_nowait.get(handle.inode.dev)
        if quick is False:
            return None
        buffer = self._buffer[:size]
        try:
            count = os.preadv(fd, [buffer], offset, 0 if quick else os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if quick is not None or error.errno != errno.EOPNOTSUPP:
                raise
            self._no_nowait[handle.inode.dev] = _is_in_memory(handle.inode.dev)
            return self._read_now(handle, offset, size)
        if count == size or offset + count >= os.fstat(fd).st_size:
            return buffer[:count]
        return None

    async def write(self, fh: int, offset: int, data: bytes | memoryview) -> int:
        """Write all of `data`, or raise."""
        handle = self._handles.file(fh)
        if self._changes.held(handle.key):
            await self._wait_to_begin(handle.key)
        save = self._changes.before_write(handle.key, handle.fd, offset, len(data), handle.dirs)
        if handle.mtimes is not None:
            handle.mtimes.written(handle.inode)
        fd = handle.fd
        begun = perf_counter()
        inline = save is None and self._pace.inline(begun) and not self._waiting.busy(handle.inode.ino)
        if len(data) >= LARGE_WRITE and self.on_large_write is not None:
            self.on_large_write(slow=not inline)
            begun = perf_counter()
        try:
            if inline:
                done = layer.write_all(fd, data, offset)
                took = perf_counter() - begun
            else:
                handle.changed_in_thread = True
                try:
                    done, took = await self._change(handle.inode, save, lambda: _timed_write(fd, data, offset))
                finally:
                    if handle.mtimes is not None:  # again: the kernel may have told us a time meanwhile
                        handle.mtimes.written(handle.inode)
        except OSError:
            if handle.mtimes is not None:
                self._ahead.add(handle.inode.ino)
            raise
        self._pace.took(took, perf_counter(), inline=inline)
        return done

    async def _wait_to_begin(self, key: FileKey) -> None:
        await self._waiting.wait_for(lambda: self._changes.wait_to_begin(key))

    async def _change(self, inode: Inode, save: Save | None, change: Callable[[], T]) -> T:
        """Make a change in a thread that was announced just now."""

        def work() -> T:
            if save is not None:
                save()
            return change()

        with self._changes.change(inode.key):
            return await self._waiting.offload(work, on=inode.ino)

    async def truncate(self, ino: int, size: int, fh: int | None) -> None:
        """Set the size, through an open file where there is one (ftruncate asks for no permission)."""
        inode = self._inodes.get(ino)
        handle = self._writable_handle(inode, fh)
        if handle is not None:
            await self._resize(handle.fd, inode, size)
            return
        try:
            fd = self._reach.open(inode, os.O_RDWR)
        except PermissionError:
            fd = self._reach.open(inode, os.O_WRONLY)
        try:
            await self._resize(fd, inode, size)
        finally:
            os.close(fd)

    async def _resize(self, fd: int, inode: Inode, size: int) -> None:
        # With the write-back cache the kernel leaves the times alone if the size stays (Linux fs/fuse/dir.c,
        # fuse_do_setattr), and does not ask for ours. ext4 would set them, and they would show at some later time.
        # But set-ID bits go all the same (see session.py, `_wishes`).
        if self._mtimes is None or (st := os.fstat(fd)).st_size != size or st.st_mode & _SET_ID:
            await self._truncate(fd, inode, size)

    def _writable_handle(self, inode: Inode, fh: int | None) -> FileHandle | None:
        if fh is not None:
            return self._handles.file(fh)
        return next((handle for handle in self._handles.of(inode) if handle.writable), None)

    async def _truncate(self, fd: int, inode: Inode, size: int) -> None:
        if self._changes.held(inode.key):
            await self._wait_to_begin(inode.key)
        large = os.fstat(fd).st_size - size > MAX_INLINE_CUT or self._waiting.busy(inode.ino)
        save = self._changes.before_truncate(inode.key, fd, size, self._tree.dirs_above(inode))
        if save is None and not large:
            os.ftruncate(fd, size)
        else:
            ours = os.dup(fd)  # a handle that we were not given may be released meanwhile
            try:
                await self._change(inode, save, lambda: os.ftruncate(ours, size))
            finally:
                os.close(ours)
        if self._mtimes is not None:
            self._mtimes.written(inode)

    def fsync(self, fh: int, *, data_only: bool) -> bytes | Later:
        """An empty answer when the file's content (and, unless `data_only`, its metadata) is on disk."""
        handle = self._handles.file(fh)
        return _sync(handle.fd, data_only=data_only, on=handle.inode.ino)

    def fsync_directory(self, fh: int, *, data_only: bool) -> bytes | Later:
        """An empty answer when the directory's names are on disk."""
        return _sync(self._tree.directory_fd(fh), data_only=data_only)


def _sync(fd: int, *, data_only: bool, on: int | None = None) -> bytes | Later:
    def sync() -> bytes:
        (os.fdatasync if data_only else os.fsync)(fd)
        return b""

    # In memory it does nothing (Linux fs/libfs.c, noop_fsync).
    return sync() if _is_in_memory(os.fstat(fd).st_dev) else Later(sync, on)


@functools.cache
def _is_in_memory(device: int) -> bool:
    return filesystem_type(device) in IN_MEMORY


def _timed_write(fd: int, data: bytes | memoryview, offset: int) -> tuple[int, float]:
    begun = perf_counter()
    return layer.write_all(fd, data, offset), perf_counter() - begun
