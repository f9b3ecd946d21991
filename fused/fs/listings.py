"""Listings of directories: what an open directory walks through, and what the kernel may go on to show by itself.

The kernel keeps the names that it was told (FOPEN_CACHE_DIR) and shows them again while it knows of no change. As
somebody may reach the covered directory by another way, its times are compared each time it is opened, and the kernel
drops what it has if they are others (fuse_open_out without FOPEN_KEEP_CACHE; Linux fs/fuse/dir.c, fuse_dir_open). A
change within the granularity of the host's clock would not show in them, so a listing of a directory that changed just
before is not trusted.

The kernel asks for attributes along with names (readdirplus). The first names of a listing are told with them, as most
programs look at what they list, and each saves a request. From then on they are only as long as somebody looks
at files in the directory meanwhile: a stat for each of 100,000 names is half a second.

Positions are indexes into the names as an open directory took them at its beginning. It goes on with these names until
the program rewinds: no entry is shown twice or left out while others come and go, and what vanished meanwhile is
skipped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from fused.fs.inodes import Inode
    from fused.local.listing import RawListing

FIRST = 1_000
"""Names that are always told with their attributes."""

SETTLED_NS = 100_000_000
"""How long a directory must have been unchanged for its names to be trusted: some ticks of the slowest clock."""


class Listing:
    """The names of a directory at one instant, `.` and `..` left out; taken apart as far as somebody has come."""

    __slots__ = ("_entries", "_rest")

    def __init__(self, raw: RawListing | None = None) -> None:
        self._entries: list[tuple[bytes, int, int]] = []
        self._rest: Iterator[tuple[bytes, int, int]] = iter(()) if raw is None else raw.entries()

    def at(self, index: int) -> tuple[bytes, int, int] | None:
        """The name, the host's inode number and the type (as in a mode); None after the last one."""
        entries = self._entries
        while len(entries) <= index:
            entry = next(self._rest, None)
            if entry is None:
                return None
            entries.append(entry)
        return entries[index]


class Listings:
    """What is remembered of directories that were listed, by Ino."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[int, int]] = {}
        self._looked_into: set[int] = set()

    def __len__(self) -> int:
        """Directories of which the kernel may show what it was told."""
        return len(self._told)

    def begins(self, directory: Inode, st: os.stat_result) -> None:
        """The names are about to be told, from the first one on. `st` is the directory's stat of before."""
        stamp = _stamp(st)
        if time.time_ns() - max(stamp) > SETTLED_NS:
            self._told[directory.ino] = stamp
        else:
            self._told.pop(directory.ino, None)
        self._looked_into.discard(directory.ino)

    def is_as_told(self, directory: Inode, st: os.stat_result) -> bool:
        """Whether the names that the kernel may have are still true. `st` is the directory's stat of now."""
        return self._told.get(directory.ino) == _stamp(st)

    def looked_into(self, directory: Inode) -> None:
        """Somebody asked for a file in it by name."""
        self._looked_into.add(directory.ino)

    def wants_attributes(self, directory: Inode, index: int) -> bool:
        """Whether the names from `index` on are to be told with their attributes."""
        if index < FIRST:
            return True
        wanted = directory.ino in self._looked_into
        self._looked_into.discard(directory.ino)
        return wanted

    def forget(self, directory: Inode) -> None:
        """It leaves the inode table."""
        self._told.pop(directory.ino, None)
        self._looked_into.discard(directory.ino)


def _stamp(st: os.stat_result) -> tuple[int, int]:
    return st.st_mtime_ns, st.st_ctime_ns
