"""One local file into blocks: only the chunks that changed are read, hashed and stored."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from fused.cid import RAW
from fused.dag.build import file_root
from fused.dag.chunker import chunk_count, chunk_size
from fused.index.index import FileMemo
from fused.store.base import Block
from fused.types import Stat

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.cid import CID
    from fused.dag.seal import Seal
    from fused.sync.frozen import FileCapture

RACY_NS = 50_000_000
"""A file hashed less than this after its ctime may change again and show the same times. Kernel time
stamps advance with the timer tick, 1 to 10 ms (CONFIG_HZ 1000 to 100); Git's index has the same trap."""


def racy(ctime_ns: int) -> bool:
    """Whether a file with this ctime, read now, may change without its stat showing it. True for times to come."""
    return time.time_ns() - ctime_ns < RACY_NS


def open_for_reading(name: bytes, dir_fd: int) -> int:
    """A descriptor on the regular file `name`, opened without following, waiting, or touching its atime where possible.

    Raises OSError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError as exc:
        if exc.errno != errno.EPERM:  # O_NOATIME is for the owner only (open(2))
            raise
        return os.open(name, flags, dir_fd=dir_fd)


def ingest(
    fd: int,
    capture: FileCapture,
    memo: FileMemo | None,
    seal: Seal,
    emit: Callable[[Block], None],
) -> FileMemo:
    """Make the blocks of the file open at `fd` as `capture` sees it, and return what to remember of it.

    Blocks go to `emit`, in order. Chunks that are as they were in `memo` are neither read nor emitted.
    Raises OSError, ChangedTooFast, and what `emit` raises.
    """
    size = capture.size
    count = chunk_count(size)
    known = _known_leaves(capture, memo)
    capture.need({i for i in range(count) if i not in known})
    leaves: list[CID] = []
    tsize = memo.tsize if memo is not None else 0
    for i in range(count):
        old = known.get(i)
        if old is None:
            cid, data = seal(RAW, capture.read(fd, i) if size else b"")
            emit(Block(cid, data))
            leaves.append(cid)
            tsize = len(data)
        else:
            leaves.append(old)
    root = leaves[0]
    if count > 1:
        root, blocks, tsize = file_root(leaves, size, seal)
        for block in blocks:
            emit(block)
    st = capture.stat
    return FileMemo(st.st_ino, Stat.of(st), racy(st.st_ctime_ns), root, tsize, tuple(leaves) if count > 1 else ())


def _known_leaves(capture: FileCapture, memo: FileMemo | None) -> dict[int, CID]:
    """Chunks, by number, whose content `memo` has."""
    if memo is None or capture.dirty.chunks is None or capture.dirty.base != memo.stat:
        return {}
    old_size, size = memo.stat.size, capture.size
    old = memo.leaves or (memo.cid,)
    if len(old) != chunk_count(old_size):
        return {}
    return {
        i: old[i]
        for i in range(min(len(old), chunk_count(size)))
        if capture.dirty.unchanged(i) and chunk_size(old_size, i) == chunk_size(size, i)
    }
