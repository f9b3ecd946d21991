"""Large blocks as files: `blobs/<shard>/<CID>.<writer>-<n>`, one file a block.

Not for: which blocks exist. Only a committed row does that, and the row names the file; a file without a row is
nothing. No two writes ever use one name, hence the ending: so a second writer of the same block can't replace a file
that was already synced by one that is not, and removing a file after its row is gone can't hit a newer one.

Writing goes through `tmp/<writer>/`, a directory that its writer holds locked (flock) for as long as it lives. Whoever
gets that lock knows that the writer is dead and its files there are rubbish.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import itertools
import os
import re
import secrets
import shutil
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from fused.cid import CID, format_cid, parse_cid, verify
from fused.errors import BlockCorrupt, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fused.store.base import Block

# Descriptors that one write keeps open until its files are synced. The usual limit of a process is 1,024.
_GROUP = 128

# A group of files is made durable by one syncfs, or by fdatasync of each file and fsync of each directory. syncfs
# flushes the disk's cache once and not hundreds of times; but it waits for everybody's dirty pages, and the largest
# heap of those is the covered directory, on the same disk. So it is used when there is little else to wait for.
# On ext4, alone and while six other processes were syncing to the same disk (bench/store.py sync, dirty):
#   4 x 1 MiB      syncfs 4 and 47 ms, each 3 and 20 ms
#   64 x 1 MiB     syncfs 218 and 369 ms, each 220 and 811 ms
#   8 x 1 MiB beside 1 GB of other dirty pages, alone: syncfs 434 ms, each 30 ms
_FEW = 4
_LITTLE_BYTES = 64 << 20

_SYNC_FILE_RANGE_WRITE = 2
_FUSE_SUPER_MAGIC = 0x65735546
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.syncfs.argtypes = (ctypes.c_int,)


class BlobFiles:
    """The files of large blocks in one store, for use from any thread. Errors are OSError unless said otherwise."""

    def __init__(self, root: str) -> None:
        """Open the store at `root`; `close` releases the descriptors."""
        self._blobs_fd = os.open(os.path.join(root, "blobs"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._syncs_whole = not _is_fuse(self._blobs_fd)
        self._tmp = os.path.join(root, "tmp")
        self._writer = ""
        self._writer_fd = -1
        self._lock = threading.Lock()  # protects the making of the writer's directory
        self._numbers = itertools.count()

    def write(self, blocks: Sequence[Block], check: Callable[[], None]) -> list[str]:
        """Write each block to a file of its own and return their names. Durable on return.

        `check` is called between files and may raise. After any error no file of this call is left.
        """
        names: list[str] = []
        try:
            for start in range(0, len(blocks), _GROUP):
                self._write_group(blocks[start : start + _GROUP], names, check)
        except BaseException:
            self.remove(names)
            raise
        return names

    def _write_group(self, blocks: Sequence[Block], names: list[str], check: Callable[[], None]) -> None:
        """Append the files' names to `names` before they exist, so that the caller can remove what an error leaves."""
        tmp_fd = self._tmp_directory()
        fds: list[int] = []
        try:
            for block in blocks:
                check()
                name = f"{format_cid(block.cid)}.{self._writer}-{next(self._numbers):x}"
                names.append(name)
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=tmp_fd)
                fds.append(fd)
                _write_all(fd, block.data)
                _start_writing_out(fd)
                self._move_into_place(name, tmp_fd)
            size = sum(len(block.data) for block in blocks)
            if len(fds) > _FEW and self._syncs_whole and _little_else_is_dirty(size):
                _syncfs(fds[0])
            else:
                for fd in fds:
                    os.fdatasync(fd)
                for shard in {_shard(name) for name in names[-len(blocks) :]}:
                    _fsync_directory(shard, self._blobs_fd)
                os.fsync(self._blobs_fd)  # shards that are new, made by us or by another process a moment ago
            for fd in fds:
                _forget_content(fd)
        finally:
            for fd in fds:
                os.close(fd)

    def _move_into_place(self, name: str, tmp_fd: int) -> None:
        target = _path(name)
        try:
            os.rename(name, target, src_dir_fd=tmp_fd, dst_dir_fd=self._blobs_fd)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(_shard(name), 0o700, dir_fd=self._blobs_fd)
            os.rename(name, target, src_dir_fd=tmp_fd, dst_dir_fd=self._blobs_fd)

    def read(self, name: str, cid: CID, size: int) -> bytes:
        """The content of the file, verified. Raises BlockCorrupt, FileNotFoundError or another OSError."""
        fd = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._blobs_fd)
        try:
            data = os.read(fd, size + 1)
            while len(data) < size and (more := os.read(fd, size + 1 - len(data))):  # after a signal, in theory
                data += more
        except OSError as err:
            if err.errno == errno.EIO:
                raise BlockCorrupt(cid, "the disk can't read it") from err
            raise
        finally:
            os.close(fd)
        if len(data) != size:
            more_or_less = f"only {len(data)}" if len(data) < size else "more"
            raise BlockCorrupt(cid, f"it has {size} bytes, its file has {more_or_less}")
        verify(cid, data)
        return data

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, also half-written ones of our own. Never raises: what is left is rubbish for `orphans`."""
        for name in names:
            with suppress(OSError):
                try:
                    os.unlink(_path(name), dir_fd=self._blobs_fd)
                except FileNotFoundError:
                    if self._writer_fd >= 0:
                        os.unlink(name, dir_fd=self._writer_fd)

    def orphans(self) -> Iterator[tuple[CID | None, str]]:
        """Files whose writer is dead, as (CID, name); the CID is None if the name is none of ours.

        The caller removes those that no row names. A writer that is alive may be about to commit the row of a file
        that has none, however old the file; a dead one has committed all that it ever will.
        """
        alive: dict[str, bool] = {}
        for shard in sorted(os.listdir(self._blobs_fd)):
            try:
                fd = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._blobs_fd)
            except NotADirectoryError:
                continue
            try:
                names = os.listdir(fd)
            finally:
                os.close(fd)
            for name in names:
                text, _, ending = name.partition(".")
                writer = ending.partition("-")[0]
                if writer not in alive:
                    alive[writer] = self._is_alive(writer)
                if alive[writer]:
                    continue
                try:
                    yield parse_cid(text), name
                except UsageError:
                    yield None, name

    def modified(self, name: str) -> float:
        """When the file was written, as time.time() counts. Raises FileNotFoundError."""
        return os.stat(_path(name), dir_fd=self._blobs_fd).st_mtime

    def sweep(self) -> None:
        """Remove the temporary files of writers that died."""
        for writer in os.listdir(self._tmp):
            path = os.path.join(self._tmp, writer)
            fd = _try_lock(path)
            if fd is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(fd)

    def close(self) -> None:
        """Release the descriptors and the writer's directory."""
        with self._lock:
            if self._writer_fd >= 0:
                with suppress(OSError):
                    os.rmdir(os.path.join(self._tmp, self._writer))
                os.close(self._writer_fd)
                self._writer_fd = -1
            if self._blobs_fd >= 0:
                os.close(self._blobs_fd)
                self._blobs_fd = -1

    def _tmp_directory(self) -> int:
        """Our directory under tmp/, locked, made when the first large block comes."""
        with self._lock:
            while self._writer_fd < 0:
                writer = secrets.token_hex(4)
                path = os.path.join(self._tmp, writer)
                os.mkdir(path, 0o700)
                fd = _try_lock(path)
                if fd is not None:  # else a sweeping process was faster: take another name
                    self._writer, self._writer_fd = writer, fd
            return self._writer_fd

    def _is_alive(self, writer: str) -> bool:
        if writer and writer == self._writer:
            return True
        path = os.path.join(self._tmp, writer)
        if not writer or not os.path.isdir(path):
            return False
        fd = _try_lock(path)
        if fd is None:
            return True
        os.close(fd)
        return False


def _try_lock(directory: str) -> int | None:
    """A descriptor that holds the lock on `directory`, or None if somebody else does or it is gone."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink > 0:  # else it was removed between our open and our lock
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _shard(name: str) -> str:
    """Two characters near the end of the CID, where even CIDs of other hashes differ: 1,024 shards."""
    return name.partition(".")[0][-3:-1]


def _path(name: str) -> str:
    return f"{_shard(name)}/{name}"


def _write_all(fd: int, data: bytes) -> None:
    done = os.write(fd, data)
    while done < len(data):  # a short count comes before ENOSPC, which the next call reports
        done += os.write(fd, memoryview(data)[done:])


def _little_else_is_dirty(ours: int) -> bool:
    """Whether a syncfs right now waits for hardly more than our own `ours` bytes."""
    if _kernel() < (5, 8):  # before, it reports no write errors: syncfs(2)
        return False
    waiting = 0
    with open("/proc/meminfo") as f:
        for line in f:
            if line.startswith(("Dirty:", "Writeback:")):
                waiting += int(line.split()[1]) * 1024
    return waiting <= ours + _LITTLE_BYTES


def _is_fuse(fd: int) -> bool:
    """Whether `fd` is on a FUSE file system, whose server never hears of a syncfs (Linux fs/fuse/inode.c: `sync_fs` is
    set for virtiofs and fuseblk only), so that nothing is durable after it."""
    found = ctypes.create_string_buffer(256)  # struct statfs, whose first member, a long, is the type
    return _libc.fstatfs(fd, found) != 0 or ctypes.c_long.from_buffer(found).value == _FUSE_SUPER_MAGIC


@functools.cache
def _kernel() -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d+)", os.uname().release).groups()  # type: ignore[union-attr]  # it is so
    return int(major), int(minor)


def _start_writing_out(fd: int) -> None:
    """Let the disk begin while we fill the next file. A hint: nothing depends on it."""
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def _forget_content(fd: int) -> None:
    """Take what was synced out of the page cache. Hardly anybody reads it again, for the plain files have it all; and a
    gigabyte stored would push a gigabyte out of it that programs use. The memory serves for the next file at once: on a
    virtual machine that has to get fresh memory from its host, storing 1 GiB took 3.6 s instead of 6.7. A hint."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _syncfs(fd: int) -> None:
    """Sync the file system of `fd`. Reports errors since `fd` was opened: so one of the group, not an old one."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _fsync_directory(name: str, dir_fd: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
