"""Closing descriptors whose close may take long, without waiting for it.

The last descriptor of a removed file frees its pages and blocks: 0.3 s for 2 GiB in memory on ext4, and seconds where
the disk is busy. ext4 writes a file out when it is closed after a truncation (ext4(5), `auto_da_alloc`). Nobody waits
for either: the kernel sends `release` and `forget` when the program has gone on already.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGE_BLOCKS = (8 << 20) // 512
"""Blocks of 512 bytes that are freed in a moment: 8 MiB take about a millisecond."""


def close_soon(fd: int) -> None:
    """Close `fd`, in a thread if it is open on a large file. It must not be used any more."""
    try:
        large = os.fstat(fd).st_blocks > LARGE_BLOCKS
    except OSError:
        large = False
    if large:
        close_all([fd])
    else:
        os.close(fd)


def close_all(fds: Sequence[int]) -> None:
    """Close all of `fds` in a thread."""
    if not fds:
        return
    try:
        trio.lowlevel.start_thread_soon(lambda: _close(fds), lambda _: None)
    except RuntimeError:  # no more threads to be had
        _close(fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with suppress(OSError):  # what was written was reported by the writes and by fsync
            os.close(fd)
