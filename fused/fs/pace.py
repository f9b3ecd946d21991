"""Whether contents can be written inline, on the thread that serves requests, or may be held up.

Writing goes to the page cache and is quick, until the kernel puts whoever writes to sleep because too much is dirty,
or the disk below has no cache. Threads cost half as much again (1.5 and 2.3 ms for each MiB, on two processors), and a
write that is held up inline holds up every request. So the last writes decide. What was slow is tried inline again,
rarely: each such trial that fails doubles the time until the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused.fs.mounts import filesystem_type

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW_SECONDS = 8e-3
"""A write that takes so long was held up. The largest, of 1 MiB, takes 0.3 ms where nothing does so, and now and then 4
more, the kernel's tick, where others compute. Whoever dirtied too much sleeps for 10 ms or more (Linux
mm/page-writeback.c, MAX_PAUSE and domain_update_dirty_limit)."""

PATIENCE_SECONDS = 5.0
MAX_PATIENCE_SECONDS = 80.0
"""How long all writes are made in threads after one that was held up: at first, and at most."""

PASSED_ON = ("fuse", "9p", "virtiofs")
"""How the names of those file systems begin that usually hand each write to another process, or machine, and wait."""

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
"""File systems that never wait for a disk."""


class Pace:
    """What is known of one local file system. Trio thread only. Times are those of `perf_counter`."""

    def __init__(self, device: int, type_of: Callable[[int], str | None] = filesystem_type) -> None:
        """`device` is the file system's st_dev."""
        self._never = (type_of(device) or "").startswith(PASSED_ON)
        self._until = 0.0
        self._patience = PATIENCE_SECONDS

    def inline(self, now: float) -> bool:
        """Whether a write that begins now may be made inline."""
        return now > self._until and not self._never

    def took(self, seconds: float, now: float, *, inline: bool) -> None:
        """A write has just taken so long, without the time that it waited for its turn."""
        if seconds <= SLOW_SECONDS:
            return
        if not inline:
            self._until = max(self._until, now + PATIENCE_SECONDS)
            return
        quick_for = now - self._until
        self._patience = (
            min(self._patience * 2, MAX_PATIENCE_SECONDS) if quick_for < self._patience else PATIENCE_SECONDS
        )
        self._until = now + self._patience
