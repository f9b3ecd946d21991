"""Find what is not stored: walk the whole local layer once and compare each stat with the index.

Runs behind a mount that already serves. What it finds is stored as it goes, file by file, each as it was
at an instant of its own; the snapshot that follows has little left to do. A directory that changes or
vanishes while it is scanned is not an error: the change log knows, and the snapshot looks again.
"""

from __future__ import annotations

import logging
import os
import stat as stat_
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fused.sync.visit import NESTED_MOUNT, count_below, join, mount_id, open_dir, visit, why_unreadable
from fused.types import FileKey, Stat, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fused.index.index import FileMemo
    from fused.sync.capture import Capturer
    from fused.sync.visit import Child

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Level:
    """A directory that is being walked. `changed`: its memo can't be used."""

    fd: int
    key: FileKey
    path: bytes
    subdirs: Iterator[Child] = field(default_factory=lambda: iter(()))
    changed: bool = False


class Scan:
    """One walk, in a worker thread. `seen` counts regular files so far."""

    def __init__(self, capturer: Capturer) -> None:
        self._c = capturer
        self.seen = 0
        self.seen_bytes = 0
        self._unseen: list[int] = []

    def run(self, cancelled: Callable[[], None]) -> None:
        """Walk it all. `cancelled` is called now and then and raises to end the walk.

        Raises OSError if the root can't be read, and what the store and the index raise.
        """
        c = self._c
        root_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=c.root_fd)
        root_mount = mount_id(root_fd)
        stack = [_Level(root_fd, key_of(os.fstat(root_fd)), b"")]
        try:
            self._enter(stack)
            while stack:
                cancelled()
                level = stack[-1]
                child = next(level.subdirs, None)
                if child is None:
                    os.close(stack.pop().fd)
                    continue
                try:
                    fd = open_dir(child.name, level.fd)
                except OSError as exc:
                    log.debug("directory not scanned: %s", exc)  # the snapshot names it in status
                    self._mark(stack)
                    self._unseen.append(child.st.st_ino)
                    continue
                if mount_id(fd) != root_mount:
                    os.close(fd)
                    continue
                stack.append(_Level(fd, child.key, join(level.path, child.name)))
                self._enter(stack)
        finally:
            for level in stack:
                os.close(level.fd)
        c.outbox.drain()
        # What is below may have changed while nothing was mounted, and nobody looks again once it can be opened.
        c.index.drop_dirs_below(self._unseen)

    def _mark(self, stack: list[_Level]) -> None:
        """The directory on top, and so all above it, can't be taken from the index."""
        for level in reversed(stack):
            if level.changed:
                break
            level.changed = True
            self._c.outbox.forget_dirs([level.key[1]])

    def _enter(self, stack: list[_Level]) -> None:
        c, level = self._c, stack[-1]
        ino = level.key[1]
        skipped: list[tuple[bytes, str]] = []
        st = os.fstat(level.fd)
        memo = c.index.dirs([ino]).get(ino)
        if memo is None or memo.racy or (memo.mtime_ns, memo.ctime_ns) != (st.st_mtime_ns, st.st_ctime_ns):
            self._mark(stack)
        try:
            seen = visit(level.fd, level.key, level.path, c.changes, c.excludes)
        except OSError as exc:
            skipped.append((level.path, why_unreadable(exc)))
            self._mark(stack)
            self._unseen.append(ino)
            c.notes.set(ino, skipped, (0, 0))
            return
        files = [child for child in seen.children if stat_.S_ISREG(child.st.st_mode)]
        memos = c.index.files(child.st.st_ino for child in files)
        unknown = [child for child in files if not _clean(child, memos.get(child.st.st_ino))]
        if unknown:
            self._mark(stack)
            for child, _ in c.capture_all(unknown, memos, level.fd, level.path, skipped):
                self.seen_bytes += child.st.st_size
        self.seen += len(files)
        skipped += [(join(level.path, child.name), NESTED_MOUNT) for child in seen.mountpoints]
        skipped += seen.withheld
        counted = [count_below(child, level.fd) for child in seen.excluded]
        c.notes.set(ino, skipped, (sum(n for n, _ in counted), sum(size for _, size in counted)))
        level.subdirs = iter([child for child in seen.children if stat_.S_ISDIR(child.st.st_mode)])


def _clean(child: Child, memo: FileMemo | None) -> bool:
    return memo is not None and not memo.racy and memo.stat == Stat.of(child.st)
