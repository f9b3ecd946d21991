"""Files of the local layer into the store, each as it was at one instant: used by the scan and by snapshots."""

from __future__ import annotations

import logging
import os
import stat as stat_
from typing import TYPE_CHECKING

import trio

from fused.sync.frozen import ChangedTooFast
from fused.sync.ingest import MAX_SIZE, TooLarge, ingest, open_for_reading
from fused.sync.visit import join, why_unreadable
from fused.types import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fused.cid import CID
    from fused.dag.seal import Seal
    from fused.index.index import FileMemo, Index
    from fused.sync.changes import ChangeLog
    from fused.sync.excludes import Excludes
    from fused.sync.outbox import Outbox
    from fused.sync.storer import Storer
    from fused.sync.visit import Child, Notes
    from fused.types import FileKey

log = logging.getLogger(__name__)

TRIES = 3
"""How often a file is captured anew that changed faster than its old content could be saved."""

TOO_LARGE = f"is larger than {MAX_SIZE >> 40} TiB, the most that is stored of one file"
TOO_FAST = "changes faster than it can be stored; it will be tried again"


class Capturer:
    """What the scan and a snapshot work with. Lives as long as one of them; `files` and `bytes` count captures."""

    def __init__(
        self,
        root_fd: int,
        changes: ChangeLog,
        index: Index,
        outbox: Outbox,
        excludes: Excludes,
        notes: Notes,
        seal: Seal,
        storer: Storer | None = None,
    ) -> None:
        self.root_fd = root_fd
        self.changes = changes
        self.index = index
        self.outbox = outbox
        self.excludes = excludes
        self.notes = notes
        self.seal = seal
        self.storer = storer
        self.files = 0
        self.bytes = 0

    def capture_all(
        self,
        children: Iterable[Child],
        memos: Mapping[int, FileMemo],
        dir_fd: int,
        path: bytes,
        skipped: list[tuple[bytes, str]],
    ) -> Iterator[tuple[Child, FileMemo]]:
        """Store regular files of one directory. What can't be read goes to `skipped`; what is gone is left out.

        Each comes back with its memo once its blocks are on their way. Worker thread. Raises what the outbox raises.
        """
        wanted = list(children)
        keys = {c.key for c in wanted if not self.changes.frozen_file(c.key)}
        if keys:
            trio.from_thread.run(self.changes.adopt, keys)
        linked: dict[FileKey, FileMemo] = {}  # two names of one file have one content, of one instant
        for child in wanted:
            if child.key in linked:
                yield child, linked[child.key]
                continue
            again = False
            memo = None
            try:
                memo = self._capture(child, memos.get(child.st.st_ino), dir_fd)
            except OSError as exc:
                skipped.append((join(path, child.name), why_unreadable(exc)))
            except TooLarge:
                skipped.append((join(path, child.name), TOO_LARGE))
            except ChangedTooFast:
                skipped.append((join(path, child.name), TOO_FAST))
                again = True
            if memo is None:
                # Only what changed too fast stays dirty. What can't be read is tried again when its directory
                # is looked at again; if it counted as dirty, snapshots would be taken without end.
                self.changes.captured(child.key, stored=not again)
                continue
            if child.st.st_nlink > 1:
                linked[child.key] = memo
            self.outbox.remember_file(child.key, memo)
            self.files += 1
            self.bytes += memo.stat.size
            yield child, memo

    def _capture(self, child: Child, memo: FileMemo | None, dir_fd: int) -> FileMemo | None:
        """None if the file is gone and nobody kept it."""
        if child.fd is None:
            try:
                fd = open_for_reading(child.name, dir_fd)
            except FileNotFoundError:
                log.debug("a name went before its file could be captured")
            else:
                try:
                    st = os.fstat(fd)
                    if key_of(st) == child.key and stat_.S_ISREG(st.st_mode):
                        return self._ingest(child, memo, fd)
                finally:
                    os.close(fd)
        # The name is gone, or stands for something else by now. What stood there at T was kept, read-only.
        kept = child.fd if child.fd is not None else self.changes.kept(child.key)
        return None if kept is None else self._ingest(child, memo, kept)

    def _ingest(self, child: Child, memo: FileMemo | None, fd: int) -> FileMemo:
        for _ in range(TRIES - 1):
            try:
                return self._ingest_once(child, memo, fd)
            except ChangedTooFast:
                log.debug("a file changed faster than it could be captured; again")
                self.changes.captured(child.key, stored=False)
                trio.from_thread.run(self.changes.adopt, {child.key})
        return self._ingest_once(child, memo, fd)

    def _ingest_once(self, child: Child, memo: FileMemo | None, fd: int) -> FileMemo:
        capture = self.changes.capture(child.key, fd)
        return ingest(fd, capture, memo, self.seal, self.outbox.put, None if self.storer is None else self._elsewhere)

    def _elsewhere(self, fd: int, chunks: Sequence[int], size: int) -> Sequence[CID | None] | None:
        assert self.storer is not None
        trio.from_thread.check_cancelled()
        stored = self.storer.store(fd, chunks, size)
        if stored is None:
            return None
        self.outbox.new_blocks += stored.new
        return stored.cids
