"""Listings of directories, and what they have shown: a program that lists a directory again is answered from memory.

The kernel asks for attributes along with the names (readdirplus, of which pyfuse3 leaves no choice) each time, also
for files of which it knows everything. So what was shown is kept, ready to be sent, in `Inode.shown`, and the names in
the order in which they were shown, by directory.

When is what is kept still true?

- *Attributes* are as true as those that the kernel has: we are the only way to the files. `Inode.shown` is emptied by
  whoever is about to change the file or its names (`Reach.aim`, `Reach.open`, `Inodes.add_name` and
  `Inodes.remove_name`), and not filled while the file is open or a thread works on it. A directory's attributes change
  with every name in it, and a file of another file system that is mounted below may be replaced by unmounting that:
  those are never kept.
- *Names* are dropped by whoever is about to change the directory (`Listings.changed`). As somebody may reach the
  covered directory by another way, its times are compared as well before each use. A change within the granularity of
  the host's clock would not show in them, so names are not kept if the directory changed just before they were listed.

Positions are indexes into the names as an open directory took them at its beginning. It goes on with these names,
kept or not, until the program rewinds: no entry is shown twice or left out while others come and go, and what vanished
meanwhile is skipped.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from fused.fs.inodes import Inode

MOST_NAMES = 1 << 15
"""Names kept of all directories together. Each takes about 350 bytes with its attributes: 11 MiB."""

SETTLED_NS = 100_000_000
"""How long a directory must have been unchanged for its names to be kept: some ticks of the slowest clock."""


class Listing:
    """The names of a directory at one instant. `inodes` holds, at the same index, what was shown under the name."""

    __slots__ = ("inodes", "kept", "names", "stamp")

    def __init__(self, names: list[bytes], stamp: tuple[int, int]) -> None:
        self.names = names
        self.inodes: list[Inode | None] = [None] * len(names)
        self.stamp = stamp
        self.kept = False
        """Whether others will see it, too. Only then is it worth to keep what it has shown."""


EMPTY = Listing([], (0, 0))


class Listings:
    """The directories' names that are kept, least recently used first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Listing] = OrderedDict()  # by Ino
        self._count = 0

    def __len__(self) -> int:
        """How many names are kept."""
        return self._count

    def find(self, directory: Inode, st: os.stat_result) -> Listing | None:
        """The names as they are now, if they are known. `st` is the directory's stat of just now."""
        listing = self._kept.get(directory.ino)
        if listing is None:
            return None
        if listing.stamp != _stamp(st):
            self.changed(directory)
            return None
        self._kept.move_to_end(directory.ino)
        return listing

    def take(self, directory: Inode, st: os.stat_result, names: list[bytes]) -> Listing:
        """A new listing; kept, if that is worth it. `st` is the directory's stat of before it was listed."""
        listing = Listing(names, _stamp(st))
        if len(names) <= MOST_NAMES // 2 and time.time_ns() - max(listing.stamp) > SETTLED_NS:
            self.changed(directory)
            listing.kept = True
            self._kept[directory.ino] = listing
            self._count += len(names)
            while self._count > MOST_NAMES:
                self._let_go(self._kept.popitem(last=False)[1])
        return listing

    def changed(self, directory: Inode) -> None:
        """Names in this directory are about to change, or it leaves the inode table."""
        listing = self._kept.pop(directory.ino, None)
        if listing is not None:
            self._let_go(listing)

    def _let_go(self, listing: Listing) -> None:
        listing.kept = False
        self._count -= len(listing.names)
        # Whoever is walking through it goes on. Another listing may soon fill `shown` again, of a file that has another
        # name by then, and its own name may be another file's.
        for index, inode in enumerate(listing.inodes):
            if inode is not None:
                inode.shown = None
                listing.inodes[index] = None


def _stamp(st: os.stat_result) -> tuple[int, int]:
    return st.st_mtime_ns, st.st_ctime_ns
