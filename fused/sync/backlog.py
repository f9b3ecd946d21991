"""How much is there to store, while the store can't take anything: a walk that compares stats and reads no contents."""

from __future__ import annotations

import logging
import os
import stat as stat_
from typing import TYPE_CHECKING

from fused.sync.visit import join, mount_id, open_dir, visit
from fused.types import Stat, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.index.index import Index
    from fused.sync.changes import ChangeLog
    from fused.sync.excludes import Excludes

log = logging.getLogger(__name__)


def count_backlog(
    root_fd: int, changes: ChangeLog, index: Index, excludes: Excludes, cancelled: Callable[[], None]
) -> tuple[int, int]:
    """(files, bytes) that a scan would store, but for those that are known to be dirty, which others count.

    In a worker thread; `cancelled` raises to end it. Raises OSError.
    """
    files = size = 0
    root = open_dir(b".", root_fd)
    mount = mount_id(root)
    stack = [(root, b"")]
    try:
        while stack:
            cancelled()
            fd, path = stack.pop()
            try:
                seen = visit(fd, key_of(os.fstat(fd)), path, changes, excludes)
                regular = [child for child in seen.children if stat_.S_ISREG(child.st.st_mode)]
                memos = index.files(child.st.st_ino for child in regular)
                for child in regular:
                    memo = memos.get(child.st.st_ino)
                    if changes.changed_since(child.key):
                        continue
                    if memo is None or memo.stat != Stat.of(child.st):
                        files, size = files + 1, size + child.st.st_size
                for child in seen.children:
                    if stat_.S_ISDIR(child.st.st_mode):
                        stack += _enter(child.name, fd, join(path, child.name), mount)
            except OSError as exc:
                log.debug("what is in a directory is not counted: %s", exc)
            finally:
                os.close(fd)
    finally:
        for fd, _ in stack:
            os.close(fd)
    return files, size


def _enter(name: bytes, dir_fd: int, path: bytes, mount: int) -> list[tuple[int, bytes]]:
    """The directory as an entry of the stack, if it can be looked into and is of the same file system."""
    try:
        fd = open_dir(name, dir_fd)
    except OSError:
        return []
    if mount_id(fd) == mount:
        return [(fd, path)]
    os.close(fd)
    return []
