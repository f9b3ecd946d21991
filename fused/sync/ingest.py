"""One local file into blocks: only the chunks that changed are read, hashed and stored.

A file of a petabyte may be made by one call and be nothing but a hole. So nothing here takes time or memory for each
chunk that is not looked at: known ones are copied, and holes added, as runs.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fused.cid import RAW
from fused.dag.build import file_root
from fused.dag.chunker import CHUNK, chunk_count, chunk_size
from fused.index.index import FileMemo
from fused.leaves import LeafList
from fused.store.base import Block
from fused.sync.frozen import ChangedTooFast
from fused.types import Stat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fused.cid import CID
    from fused.dag.seal import Seal
    from fused.sync.frozen import FileCapture

MAX_SIZE = 16 << 40
"""Bytes in the largest file that is stored: what ext4 allows. Of one with content, 16 million blocks have to be known.
Holes cost nothing, but a file system that can't tell them (lseek(2), SEEK_HOLE) would have all of them read."""

SPARSE_FROM = 1 << 30
"""Bytes in the smallest file whose holes are looked for. In a smaller one they are read like anything else, which
takes a second and trusts nobody: file systems have got SEEK_HOLE wrong under writes (openzfs/zfs#15526)."""

RACY_NS = 50_000_000
"""A file hashed less than this after its ctime may change again and show the same times. Kernel time
stamps advance with the timer tick, 1 to 10 ms (CONFIG_HZ 1000 to 100); Git's index has the same trap."""


READ_AT_ONCE = 16
"""Chunks that are read by one call of what `ingest` is given to do so elsewhere."""

FEW = 8
"""Fewer chunks than this are not worth that: each call waits for the disk to have them all."""


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


Elsewhere = Callable[[int, "Sequence[int]", int], "Sequence[CID | None] | None"]
"""(descriptor, chunks, size of the file) to their CIDs when they are durable, None for one that is too short; or None:
not now, do it yourself. Raises StoreUnavailable, OSError."""


class TooLarge(Exception):
    """A file is larger than MAX_SIZE."""


def ingest(
    fd: int,
    capture: FileCapture,
    memo: FileMemo | None,
    seal: Seal,
    emit: Callable[[Block], None],
    elsewhere: Elsewhere | None = None,
) -> FileMemo:
    """Make the blocks of the file open at `fd` as `capture` sees it, and return what to remember of it.

    Blocks go to `emit`, in order, but for those of many chunks in a row: `elsewhere` reads and stores these, if it can.
    Chunks that are as they were in `memo` are neither read nor emitted, nor are holes read in a file that is mostly
    holes.
    Raises OSError, ChangedTooFast, TooLarge, and what `emit` raises.
    """
    size = capture.size
    if size > MAX_SIZE:
        raise TooLarge
    count = chunk_count(size)
    known = _known_leaves(capture, memo)
    unknown = _unknown_chunks(capture, len(known), count)
    capture.need(unknown)
    leaves = LeafList()
    tsize = memo.tsize if memo is not None else 0

    def add(data: bytes, times: int = 1) -> None:
        nonlocal tsize
        cid, data = seal(RAW, data)
        emit(Block(cid, data))
        leaves.append(cid, times)
        tsize = len(data)

    def read(chunks: Sequence[int]) -> None:
        cids = elsewhere(fd, chunks, size) if elsewhere is not None and len(chunks) >= FEW else None
        for at, i in enumerate(chunks):
            leaves.extend_from(known, len(leaves), i)
            if cids is None:
                add(capture.read(fd, i) if size else b"")
                continue
            saved, cid = capture.instead(i), cids[at]
            if saved is not None:
                add(saved)
            elif cid is not None:
                leaves.append(cid)
            else:
                raise ChangedTooFast  # as when it is read here

    sparse = _is_sparse(capture)
    waiting: list[int] = []  # to be read, with known ones at most between them
    for chunks in unknown:
        for part, is_hole in _parts(capture, fd, chunks, sparse=sparse):
            if not is_hole:
                for i in part:
                    waiting.append(i)
                    if len(waiting) == READ_AT_ONCE:
                        read(waiting)
                        waiting.clear()
                if sparse:  # before the next hole is looked for: chunks are to be settled in order
                    read(waiting)
                    waiting.clear()
                continue
            leaves.extend_from(known, len(leaves), part.start)
            rest = chunk_size(size, part[-1])  # less than a chunk at the end of the file
            if len(part) > 1 or rest == CHUNK:
                add(bytes(CHUNK), len(part) - (rest < CHUNK))
            if rest < CHUNK:
                add(bytes(rest))
    read(waiting)
    leaves.extend_from(known, len(leaves), count)
    root = leaves[0]
    if count > 1:
        root, blocks, tsize = file_root(leaves, size, seal)
        for block in blocks:
            emit(block)
    st = capture.stat
    return FileMemo(st.st_ino, Stat.of(st), racy(st.st_ctime_ns), root, tsize, leaves if count > 1 else ())


def _known_leaves(capture: FileCapture, memo: FileMemo | None) -> LeafList:
    """The leaves in `memo` from the first on, as far as they may be the same. Some in between may have changed."""
    known = LeafList()
    if memo is None or capture.dirty.chunks is None or capture.dirty.fresh or capture.dirty.base != memo.stat:
        return known
    old_size, size = memo.stat.size, capture.size
    old = memo.leaves if isinstance(memo.leaves, LeafList) else LeafList(memo.leaves or (memo.cid,))
    if len(old) != chunk_count(old_size):
        return known
    end = min(len(old), chunk_count(size))
    if capture.dirty.cut is not None:
        end = min(end, capture.dirty.cut // CHUNK)
    if end and chunk_size(old_size, end - 1) != chunk_size(size, end - 1):
        end -= 1
    known.extend_from(old, 0, end)
    return known


def _unknown_chunks(capture: FileCapture, known: int, count: int) -> list[range]:
    """Which of `count` chunks have to be read, if the first `known` are known but for those that were written to."""
    unknown: list[range] = []
    for i in sorted(i for i in capture.dirty.chunks or () if i < known):
        if unknown and unknown[-1].stop == i:
            unknown[-1] = range(unknown[-1].start, i + 1)
        else:
            unknown.append(range(i, i + 1))
    if known < count:
        unknown.append(range(known, count))
    return unknown


def _is_sparse(capture: FileCapture) -> bool:
    """Whether the file is mostly holes."""
    st = capture.stat
    return st.st_size >= SPARSE_FROM and st.st_blocks * 512 <= st.st_size // 2


def _parts(capture: FileCapture, fd: int, chunks: range, *, sparse: bool) -> Iterator[tuple[range, bool]]:
    """`chunks` in parts, each with whether it was a hole; of a file that is not `sparse`, all as one part.

    Raises OSError and ChangedTooFast.
    """
    if not sparse:
        yield chunks, False
        return
    at = chunks.start
    while at < chunks.stop:
        data = min(chunks.stop, _next(fd, at * CHUNK, os.SEEK_DATA) // CHUNK)
        if data > at:
            for i in capture.hole(range(at, data)):
                if i > at:
                    yield range(at, i), True
                yield range(i, i + 1), False
                at = i + 1
            if data > at:
                yield range(at, data), True
            at = data
        if at < chunks.stop:
            hole = min(chunks.stop, max(at + 1, -(-_next(fd, at * CHUNK, os.SEEK_HOLE) // CHUNK)))
            yield range(at, hole), False
            at = hole


def _next(fd: int, offset: int, whence: int) -> int:
    """Where the next data or hole begins from `offset` on; beyond every file if there is none (lseek(2), ENXIO)."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return MAX_SIZE + CHUNK
