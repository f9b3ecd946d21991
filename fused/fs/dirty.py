"""How near the system is to the number of dirty pages at which the kernel puts to sleep whoever writes.

Below it a write to the page cache takes as long as the copying. Above it the kernel holds the writer until the disk has
made room (Linux mm/page-writeback.c, balance_dirty_pages). The numbers are in /proc/vmstat, in pages. The limits that
a control group with little memory has of its own are not there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re

log = logging.getLogger(__name__)

NEAR = 0.8
"""Of the number up to which nobody is held: others write, too, and the number is not read before each write."""

_HALF = 0.5
_FAR_SECONDS = 0.1
_NEAR_SECONDS = 0.02
"""How long a reading is good, below half of that number and above. A reading takes 40 us; a process that does nothing
else dirties a gigabyte or two in a second."""

_FIELDS = re.compile(rb"^nr_(dirty|writeback|dirty_threshold|dirty_background_threshold) (\d+)$", re.MULTILINE)
_LARGEST = 32 << 10


class DirtyMemory:
    """Reads the numbers, seldom. One thread only. Times are those of `perf_counter`."""

    def __init__(self, path: str = "/proc/vmstat") -> None:
        """Where `path` can't be read, or says nothing of this, nothing is ever near."""
        self._fd = -1
        self._good_until = 0.0
        self._near = False
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            log.debug("dirty pages can't be counted: %s", exc)

    def near_limit(self, now: float) -> bool:
        """Whether a write that begins now may be held up."""
        if now < self._good_until:
            return self._near
        part = self._part()
        self._near = part > NEAR
        self._good_until = now + (_FAR_SECONDS if part < _HALF else _NEAR_SECONDS)
        return self._near

    def _part(self) -> float:
        """Of the pages that may be dirty before anybody is held, as many as are dirty or being written."""
        try:
            found = dict(_FIELDS.findall(os.pread(self._fd, _LARGEST, 0)))
            pages = int(found[b"dirty"]) + int(found[b"writeback"])
            # dirty_freerun_ceiling in mm/page-writeback.c
            free_run = (int(found[b"dirty_threshold"]) + int(found[b"dirty_background_threshold"])) // 2
        except (OSError, KeyError):
            return 0.0
        return pages / max(free_run, 1)

    def close(self) -> None:
        """Nothing is near from now on."""
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)
