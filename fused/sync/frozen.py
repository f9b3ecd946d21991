"""What the local layer was at an instant, while it goes on changing: the copies behind `ChangeLog`.

Chunks that a write is about to overwrite, listings of directories that are about to change, descriptors of what is
about to lose its name. The head of `changes.py` tells how they are used and why there are no races.
"""

from __future__ import annotations

import logging
import os
import stat as stat_
import tempfile
import threading
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from fused.dag.chunker import CHUNK, chunk_count
from fused.local.closing import close_all
from fused.local.listing import RawListing
from fused.types import FileKey, Stat, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

SAVED_IN_MEMORY = 32 * CHUNK
"""Bytes of saved chunks kept in memory; more goes to an unlinked temporary file."""

SAVED_AT_MOST = 1024 * CHUNK
"""Bytes of saved chunks in one generation. A file whose old content does not fit is captured again,
at a later instant: still content that it really had, but no longer of the same instant as its peers."""

SAVED_AT_ONCE = 64 * CHUNK
"""Bytes that one change may cost to save: the program that makes it waits meanwhile."""

KEPT_AT_MOST = 1024
"""Descriptors kept of files and directories whose names went while they were frozen."""


@dataclass(slots=True)
class DirtyFile:
    """Which part of a file's content has changed since it was last captured.

    `chunks` are chunk numbers, or None if anything may have changed. Content from `cut` on (bytes)
    was truncated away at some time. `base` is the file's stat just before the first of these changes:
    what is known of the content holds for the other chunks only if it was known for that very stat.
    `end` is where the
    furthest write ended, in bytes. `fresh`: the file was created since, so what the index knows under its inode
    number is of an earlier one.
    """

    chunks: set[int] | None = field(default_factory=set)
    cut: int | None = None
    fresh: bool = False
    base: Stat | None = None
    end: int = 0

    def merge(self, later: DirtyFile) -> None:
        """Add what `later` says."""
        if self.chunks is None or later.chunks is None:
            self.chunks = None
        else:
            self.chunks |= later.chunks
        if later.cut is not None:
            self.cut = later.cut if self.cut is None else min(self.cut, later.cut)
        self.fresh = self.fresh or later.fresh
        self.end = max(self.end, later.end)


class ChangedTooFast(Exception):
    """What a file was at its instant could not be saved; capture it again."""


class _Spill:
    """Saved chunks of one generation: in memory, then in an unlinked temporary file.

    `saving` is held by the thread that saves: one at a time, so that no chunk is saved twice. `close` does not wait
    for it.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1
        self._end = 0
        self._in_memory = 0
        self._closed = False
        self.saving = threading.Lock()
        self.total = 0

    def keep(self, data: bytes) -> bytes | tuple[int, int]:
        """Keep `data` and return what `fetch` needs. Raises OSError if the disk is full."""
        self.total += len(data)
        if self._in_memory + len(data) <= SAVED_IN_MEMORY:
            self._in_memory += len(data)
            return data
        if self._fd < 0:
            self._fd, path = tempfile.mkstemp(prefix="saved-", dir=self._directory)
            os.unlink(path)
        at = self._end
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._fd, view, self._end) :]
            self._end = at + len(data) - len(view)
        return (at, len(data))

    def fetch(self, kept: bytes | tuple[int, int]) -> bytes:
        """The data that `keep` was given."""
        if isinstance(kept, bytes):
            return kept
        return os.pread(self._fd, kept[1], kept[0])

    @property
    def closed(self) -> bool:
        """Whether nobody asks for what was saved any more."""
        return self._closed

    def close(self) -> None:
        """Drop everything; at the end of the save under way, if there is one."""
        self._closed = True
        if self.saving.acquire(blocking=False):
            try:
                self.drop_if_closed()
            finally:
                self.saving.release()

    def drop_if_closed(self) -> None:
        """With `saving` held: what a save must end with, as `close` may have come meanwhile."""
        if self._closed and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileCapture:
    """One file's content as it was at its instant, while writers go on.

    `stat` is the file's stat at that instant, or as near to it as metadata matters: its size is exact.
    """

    def __init__(self, dirty: DirtyFile, st: os.stat_result, spill: _Spill) -> None:
        self.dirty = dirty
        self.stat = st
        self.size = st.st_size
        self._spill = spill
        self._saved: dict[int, bytes | tuple[int, int]] = {}
        self._passed = 0  # chunks before this one have been read, or are not needed
        self._needed: Sequence[range] = (range(chunk_count(self.size)),)
        self._broken = False

    def need(self, chunks: Sequence[range]) -> None:
        """Tell which chunks will be read at all, in order and without overlap; writers need not save the others.

        They have to be read, or passed by as holes, in this order.
        """
        self._needed = chunks

    def read(self, fd: int, index: int) -> bytes:
        """Chunk `index` as it was. Raises ChangedTooFast if it could not be saved."""
        offset = index * CHUNK
        want = min(CHUNK, self.size - offset)
        data = os.pread(fd, want, offset)
        while 0 < len(data) < want:
            more = os.pread(fd, want - len(data), offset + len(data))
            if not more:
                break
            data += more
        saved = self.instead(index)
        if saved is not None:
            data = saved
        if len(data) != want:
            raise ChangedTooFast  # cut short behind our back, by somebody with a descriptor from before the mount
        return data

    def instead(self, index: int) -> bytes | None:
        """Chunk `index` was just read, here or elsewhere: what is to be taken instead, if a change of it has begun.

        Raises ChangedTooFast if what it was could not be saved.
        """
        saved = self._saved.get(index)
        self._settle(index, saved)
        return None if saved is None else self._spill.fetch(saved)

    def hole(self, chunks: range) -> list[int]:
        """The file was just found to have a hole at `chunks`: which of them were something else at its instant.

        These are still to be read. Raises ChangedTooFast as `read` does.
        """
        # As with a chunk that was read: whoever wrote there before the hole was found has saved what was there.
        saved = sorted(i for i in list(self._saved) if i in chunks)
        self._settle(chunks[-1], None)
        return saved

    def _settle(self, index: int, saved: bytes | tuple[int, int] | None) -> None:
        """Chunks up to `index` have been read, and `saved` of the last one: nobody has to save them any more."""
        if saved is None and self._broken:
            raise ChangedTooFast
        self._passed = max(self._passed, index + 1)

    def wants(self, start: int, stop: int) -> bool:
        """Whether anything of bytes start…stop is still to be saved."""
        return next(self._unsaved(start, stop), None) is not None

    def save(self, fd: int, start: int, stop: int) -> None:
        """Save what bytes start…stop are now, where that is still needed. In any thread, before the change.

        If another thread is saving the same chunk, its copy is waited for: this one might read what that one's change
        has made of it.
        """
        with self._spill.saving:
            if not self._spill.closed:
                # One more than there may be is enough to know: a file may have millions of chunks.
                self._save(fd, list(islice(self._unsaved(start, stop), SAVED_AT_ONCE // CHUNK + 1)))
                self._spill.drop_if_closed()

    def _save(self, fd: int, wanted: list[int]) -> None:
        if len(wanted) * CHUNK > SAVED_AT_ONCE or self._spill.total + len(wanted) * CHUNK > SAVED_AT_MOST:
            self._broken = True
            return
        try:
            for i in wanted:
                offset = i * CHUNK
                self._saved[i] = self._spill.keep(os.pread(fd, min(CHUNK, self.size - offset), offset))
        except OSError as exc:  # the disk is full, or the handle can't be read: the write must go on all the same
            log.debug("old content not saved: %s", exc)
            self._broken = True

    def _unsaved(self, start: int, stop: int) -> Iterator[int]:
        """The chunks of bytes start…stop that will still be read and were not saved."""
        stop = min(stop, self.size)
        if start >= stop or self._broken:
            return
        first = max(start // CHUNK, self._passed)
        stop = (stop - 1) // CHUNK + 1
        needed = self._needed
        for at in range(bisect_right(needed, first, key=lambda chunks: chunks.stop), len(needed)):
            if needed[at].start >= stop:
                return
            for i in range(max(first, needed[at].start), min(stop, needed[at].stop)):
                if i not in self._saved:
                    yield i


class Frozen:
    """A generation that is being captured. The change log calls it with its lock held.

    `tree`: the names in all directories belong to it, not only files that were adopted. Also those of directories that
    were clean: once they change, their memo can't be told from one of another directory with that inode number.
    """

    def __init__(self, spill_directory: str) -> None:
        self.files: dict[FileKey, DirtyFile] = {}
        self.dirs: set[FileKey] = set()
        self.linked: set[FileKey] = set()
        self.tree = False
        self.captures: dict[FileKey, FileCapture] = {}
        self.done_dirs: set[FileKey] = set()
        self.listings: dict[FileKey, RawListing] = {}
        self.kept: dict[FileKey, int] = {}
        self._spill = _Spill(spill_directory)

    def covers(self, dir_key: FileKey) -> bool:
        """Whether the directory's names at T may still be asked for."""
        return self.tree and dir_key not in self.done_dirs

    def capture(self, key: FileKey, fd: int) -> FileCapture | None:
        """The capture of a file that is open at `fd`, begun if need be; None if the file is not part of this."""
        capture = self.captures.get(key)
        if capture is None and key in self.files:
            capture = self.captures[key] = FileCapture(self.files[key], os.fstat(fd), self._spill)
        return capture

    def save_listing(self, dir_key: FileKey, dir_fd: int) -> None:
        """The names in the directory open at `dir_fd` are about to change."""
        if dir_key not in self.listings:
            try:
                self.listings[dir_key] = RawListing(dir_fd)
            except OSError as exc:  # the change must go on; the snapshot will list what is there then
                log.debug("directory not listed before its change: %s", exc)

    def keep(self, dir_fd: int, name: bytes) -> None:
        """`name` is about to go: keep a descriptor of what it stands for."""
        if len(self.kept) >= KEPT_AT_MOST:
            return
        try:
            st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            key = key_of(st)
            if key in self.kept:
                return
            flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            readable = stat_.S_ISREG(st.st_mode) or stat_.S_ISDIR(st.st_mode)
            self.kept[key] = os.open(name, flags | (os.O_RDONLY if readable else os.O_PATH), dir_fd=dir_fd)
        except OSError as exc:
            log.debug("file not kept before its name goes: %s", exc)

    def close(self) -> None:
        """Drop everything that was saved and kept."""
        close_all(list(self.kept.values()))
        self._spill.close()
